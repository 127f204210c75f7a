"""The files of a table: which lie in its folder, and which its metadata refers to."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pyarrow import NativeFile
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import read_manifest_list
from pyiceberg.table import Table

from app.errors import MantaError

_FOLDERS = ("data", "metadata")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it lies in the folder."""

    path: str
    bytes: int
    modified_ms: int


@dataclass(slots=True)
class Files:
    """A table's folder. Paths are those of the file system: without scheme, comparable."""

    _table: Table
    _io: PyArrowFileIO
    _system: FileSystem
    _root: str
    _manifests: dict[str, set[str]] = field(default_factory=dict)  # manifest to its live data files

    @classmethod
    def of(cls, table: Table) -> "Files":
        """The folder of a table.

        Raises:
            MantaError: its catalog's properties choose a file system that cannot list.
        """
        if not isinstance(table.io, PyArrowFileIO):
            found = type(table.io).__name__
            raise MantaError(f"lake.catalog: py-io-impl: found {found}, wanted pyarrow's, which can list files")
        scheme, host, path = table.io.parse_location(table.location(), table.io.properties)
        return cls(table, table.io, table.io.fs_by_scheme(scheme, host), path)

    def listed(self) -> Iterator[StoredFile]:
        """Every data and metadata file in the folder, referred to or not."""
        for folder in _FOLDERS:
            selector = FileSelector(f"{self._root}/{folder}", allow_not_found=True, recursive=True)
            for found in self._system.get_file_info(selector):
                if found.type == FileType.File:
                    yield StoredFile(found.path, found.size, _modified_ms(found))

    def open(self, path: str) -> NativeFile:
        """A file to read from anywhere in it."""
        return self._system.open_input_file(path)

    def modified_ms(self, path: str) -> int | None:
        """When a file was last written to, milliseconds since 1970; None: it is not there."""
        found = self._system.get_file_info(path)
        return _modified_ms(found) if found.type == FileType.File else None

    def location(self, path: str) -> str:
        """A path as metadata would name it."""
        scheme, mark, _ = self._table.location().partition("://")
        return f"{scheme}{mark}{path}" if mark else path

    def remove(self, path: str) -> bool:
        """Removes a file; False: another was faster."""
        try:
            self._system.delete_file(path)
        except FileNotFoundError:
            return False
        return True

    def path(self, location: str) -> str:
        """The path of a location that metadata names."""
        return str(self._io.parse_location(location, self._io.properties)[2])

    def of_snapshot(self, manifest_list: str) -> set[str]:
        """What a snapshot refers to: its manifest list, manifests and data files.

        Raises:
            FileNotFoundError: the manifest list or a manifest is not there.
        """
        found = {self.path(manifest_list)}
        for manifest in read_manifest_list(self._io.new_input(manifest_list)):
            named = manifest.manifest_path
            if named not in self._manifests:
                entries = manifest.fetch_manifest_entry(self._io, discard_deleted=True)
                self._manifests[named] = {self.path(named)} | {self.path(one.data_file.file_path) for one in entries}
            found |= self._manifests[named]
        return found

    def of_expired(self, records: Sequence[str]) -> set[str]:
        """What forgotten snapshots refer to, as far as it is still there (an earlier grace may have been shorter)."""
        found: set[str] = set()
        for record in records:
            found.add(self.path(record))
            try:
                with self._io.new_input(record).open() as file:
                    lists = json.loads(file.read())
            except FileNotFoundError:
                continue
            for manifest_list in lists:
                try:
                    found |= self.of_snapshot(manifest_list)
                except FileNotFoundError:
                    continue
        return found


def referred_to(table: Table, files: Files) -> set[str]:
    """Everything that the table's metadata refers to, as it stands in `table`."""
    metadata = table.metadata
    named = [table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)]
    named += [one.statistics_path for one in (*metadata.statistics, *metadata.partition_statistics)]
    found = {files.path(location) for location in named}
    for snapshot in metadata.snapshots:
        found |= files.of_snapshot(snapshot.manifest_list)
    return found


def _modified_ms(found: FileInfo) -> int:
    """Now, where the file system does not say: what may be young is not removed for its age."""
    return int(time.time_ns() if found.mtime_ns is None else found.mtime_ns) // 1_000_000
