"""Other files in the place of some, in one commit: with the same rows (compaction), or without some (erasure)."""

from collections.abc import Sequence
from functools import cached_property

from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.typedef import EMPTY_DICT

from app.errors import MantaError
from app.lake.commit import AppendFiles, Progress

# Places in a data file's record, as the specification of Iceberg orders it.
_LOWER_BOUNDS, _UPPER_BOUNDS = 10, 11
_MANIFEST_FILES = 5_000  # data files that one manifest names


def rewrite(table: Table, removed: Sequence[DataFile], added: Sequence[DataFile], progress: Progress) -> int:
    """Puts `added` in the place of `removed`, in one commit that carries the offsets; merges manifests on the way.

    Args:
        table: as it was when `progress` was read; any commit by another since then makes this one fail.
        removed: files of the table's current snapshot.
        added: files with the same rows, written for spec 0 or for the table's own spec.
        progress: the offsets, unchanged.

    Returns:
        The id of the new snapshot, an Iceberg `replace`: readers of changes pass it over.

    Raises:
        MantaError: a file of `removed` is not in the snapshot, or the rows differ in number.
        pyiceberg.exceptions.CommitFailedException: another commit was first; nothing has changed.
    """
    gone, came = sum(file.record_count for file in removed), sum(file.record_count for file in added)
    if gone != came:
        raise MantaError(f"lake: {table.name()[-1]}: found {came} rows in the rewritten files, wanted {gone}")
    return _commit(_ReplaceFiles, table, removed, added, progress)


def rewrite_without(table: Table, removed: Sequence[DataFile], added: Sequence[DataFile], progress: Progress) -> int:
    """As `rewrite`, but `added` lacks rows, and no manifest of the new snapshot says anything of what they were.

    Every manifest is written anew: none keeps a bound of a removed file. None removed, none added: a commit all the
    same, which makes any fail that was prepared on the snapshot before.

    Raises:
        MantaError: a file of `removed` is not in the snapshot.
        pyiceberg.exceptions.CommitFailedException: another commit was first; nothing has changed.
    """
    return _commit(_LeaveOut, table, removed, added, progress)


def _commit(
    kind: "type[_ReplaceFiles]",
    table: Table,
    removed: Sequence[DataFile],
    added: Sequence[DataFile],
    progress: Progress,
) -> int:
    transaction = table.transaction()
    change = kind(
        operation=Operation.OVERWRITE, transaction=transaction, io=table.io, snapshot_properties=progress.properties()
    )
    for file in removed:
        change.delete_data_file(file)
    for file in added:
        change.append_data_file(file)
    change.commit()
    transaction.commit_transaction()
    return int(change.snapshot_id)


class _ReplaceFiles(AppendFiles):
    """A snapshot with some files in the place of others; all manifests of a partition spec become one, or few."""

    @cached_property
    def _parted(self) -> tuple[list[ManifestFile], dict[int, list[ManifestEntry]], list[ManifestEntry]]:
        """Manifests of delete files; entries that stay, by spec; entries that go."""
        others: list[ManifestFile] = []
        stay: dict[int, list[ManifestEntry]] = {}
        go: list[ManifestEntry] = []
        parent = self._transaction.table_metadata.snapshot_by_id(self._parent_snapshot_id)
        for manifest in parent.manifests(self._io) if parent is not None else []:
            if manifest.content != ManifestContent.DATA:
                others.append(manifest)
                continue
            for entry in manifest.fetch_manifest_entry(self._io, discard_deleted=True):
                if entry.data_file in self._deleted_data_files:
                    go.append(self._as(entry, ManifestEntryStatus.DELETED))
                else:
                    kept = self._as(entry, ManifestEntryStatus.EXISTING)
                    stay.setdefault(manifest.partition_spec_id, []).append(kept)
        if len(go) != len(self._deleted_data_files):
            found = {entry.data_file.file_path for entry in go}
            missing = next(file.file_path for file in self._deleted_data_files if file.file_path not in found)
            raise MantaError(f"lake: file {missing}: not in the current snapshot, wanted it there to be replaced")
        return others, stay, go

    def _as(self, entry: ManifestEntry, status: ManifestEntryStatus) -> ManifestEntry:
        return ManifestEntry.from_args(
            status=status,
            snapshot_id=self._snapshot_id if status == ManifestEntryStatus.DELETED else entry.snapshot_id,
            sequence_number=entry.sequence_number,
            file_sequence_number=entry.file_sequence_number,
            data_file=entry.data_file,
        )

    def _build_delete_files_partition_predicate(self) -> None:
        """Files are named one by one: nothing is looked for by partition."""

    def _deleted_entries(self) -> list[ManifestEntry]:
        return self._parted[2]

    def _existing_manifests(self) -> list[ManifestFile]:
        others, stay, _ = self._parted
        manifests = list(others)
        for spec_id, entries in stay.items():
            for start in range(0, len(entries), _MANIFEST_FILES):
                with self.new_manifest_writer(self.spec(spec_id)) as writer:
                    for entry in entries[start : start + _MANIFEST_FILES]:
                        writer.add_entry(entry)
                manifests.append(writer.to_manifest_file())
        return manifests

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        # pyiceberg counts the totals of an overwrite only; what is written down is Iceberg's word for the same rows
        counted: Summary = super()._summary(snapshot_properties)
        return Summary(Operation.REPLACE, **counted.additional_properties)


class _LeaveOut(_ReplaceFiles):
    """A snapshot without some rows: an `overwrite`, and the files that go are named without their bounds."""

    def _as(self, entry: ManifestEntry, status: ManifestEntryStatus) -> ManifestEntry:
        made = super()._as(entry, status)
        if status == ManifestEntryStatus.DELETED:
            bare = DataFile(*entry.data_file._data)
            bare[_LOWER_BOUNDS] = bare[_UPPER_BOUNDS] = None
            bare.spec_id = entry.data_file.spec_id
            made.data_file = bare
        return made

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        counted = super()._summary(snapshot_properties)
        return Summary(Operation.OVERWRITE, **counted.additional_properties)
