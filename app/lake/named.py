"""Which data files Iceberg's manifests name, also those that were taken out: an entry keeps the bounds of the file."""

import struct
import zlib

from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestContent, ManifestFile, read_manifest_list
from pyiceberg.table import Table

from app.lake.files import Files

# What pyiceberg's Avro reader says to a file that ends too early.
_UNREADABLE = (EOFError, ValueError, IndexError, OSError, struct.error, zlib.error)
GONE = ""  # in the place of what a manifest names that is not there any more


class Unfinished(Exception):
    """A file that is no whole manifest, or list of them; its location."""


class Named:
    """Looks manifests up, each once. What it gives are paths as `Files` has them; what it takes are locations."""

    def __init__(self, table: Table) -> None:
        self._io: PyArrowFileIO = table.io
        self._files = Files.of(table)
        self._found: dict[str, set[str]] = {}

    @staticmethod
    def is_list(path: str) -> bool:
        """Whether an Avro file lists manifests, rather than being one."""
        return path.rpartition("/")[2].startswith("snap-")

    def all_of(self, manifest_list: str) -> set[str]:
        """The data files that the manifests of a list name."""
        found: set[str] = set()
        for manifest in self._manifests(manifest_list):
            found |= self.entries(manifest)
        return found

    def manifests(self, manifest_list: str) -> set[str]:
        """Paths of the manifests of a list."""
        return {self._files.path(manifest) for manifest in self._manifests(manifest_list)}

    def entries(self, manifest: str) -> set[str]:
        """The data files that one manifest names; `GONE`: the manifest itself is."""
        if manifest not in self._found:
            self._found[manifest] = self._entries(manifest)
        return self._found[manifest]

    def _manifests(self, manifest_list: str) -> list[str]:
        try:
            return [one.manifest_path for one in read_manifest_list(self._io.new_input(manifest_list))]
        except FileNotFoundError:
            return []
        except _UNREADABLE:
            raise Unfinished(manifest_list) from None

    def _entries(self, manifest: str) -> set[str]:
        read = ManifestFile.from_args(
            manifest_path=manifest,
            manifest_length=0,
            partition_spec_id=0,
            content=ManifestContent.DATA,
            sequence_number=0,
            min_sequence_number=0,
            added_snapshot_id=0,
        )
        try:
            entries = read.fetch_manifest_entry(self._io, discard_deleted=False)
        except FileNotFoundError:
            return {GONE}
        except _UNREADABLE:
            raise Unfinished(manifest) from None
        return {self._files.path(entry.data_file.file_path) for entry in entries}
