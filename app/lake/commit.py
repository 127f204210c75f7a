"""Appending to the lake: rows and the offsets that they came from, in one commit.

Every snapshot carries the full map of next offsets, so that no expiry of older snapshots can lose it.
"""

import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import pyarrow_to_schema, write_file
from pyiceberg.manifest import DataFile, ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import Table, WriteTask
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update.snapshot import _FastAppendFiles, _SnapshotProducer
from pyiceberg.transforms import MonthTransform

from app.errors import MantaError
from app.faults import reach

OFFSETS = "manta.offsets"
GAPS = "manta.gaps"
FINAL = "manta.final"
ARRIVAL_TIME = "arrival_time"  # of tables that have it: when the commit took the row in
# Entered around each commit of a job, from its look at the table on: writers of one process take turns.
Alone = AbstractContextManager[object]
NOBODY_ELSE: Alone = nullcontext()
LOST_COMMITS = 20  # times that another writer may be first before a writer gives up
_KEPT_GAPS = 50
UNPARTITIONED = 0
_FILE_BYTES = 512_000_000  # of uncompressed Arrow a data file


@dataclass(frozen=True, slots=True)
class TopicOffsets:
    """Where reading of one topic goes on.

    Attributes:
        topic_id: of the topic that was read; "" where the broker has none.
        next: partition to the next offset to read.
    """

    topic_id: str
    next: dict[int, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a snapshot says about its sources.

    Attributes:
        topics: topic to where reading goes on.
        gaps: accepted gaps, the newest 50, oldest first.
        final: of `figures`: size of window to the time up to which the table has them, microseconds since 1970.
    """

    topics: dict[str, TopicOffsets] = field(default_factory=dict)
    gaps: tuple[dict[str, Any], ...] = ()
    final: dict[str, int] = field(default_factory=dict)

    def moved(self, topic: str, offsets: TopicOffsets, gaps: Sequence[Mapping[str, Any]] = ()) -> "Progress":
        """The same with one topic further on."""
        kept = (*self.gaps, *(dict(gap) for gap in gaps))[-_KEPT_GAPS:]
        return Progress(self.topics | {topic: offsets}, kept, self.final)

    def closed(self, upto: Mapping[str, int]) -> "Progress":
        """The same with final windows up to later times."""
        return Progress(self.topics, self.gaps, self.final | dict(upto))

    def properties(self) -> dict[str, str]:
        """As snapshot summary properties."""
        topics = {
            topic: {"id": held.topic_id, "next": {str(part): held.next[part] for part in sorted(held.next)}}
            for topic, held in sorted(self.topics.items())
        }
        more = {GAPS: self.gaps, FINAL: self.final}
        return {OFFSETS: json.dumps(topics)} | {name: json.dumps(held) for name, held in more.items() if held}


def progress_of(table: Table) -> Progress:
    """The offsets that the table's current snapshot carries; a snapshot by others has those of the one before it.

    Raises:
        MantaError: there are snapshots, and none that is still there carries any.
    """
    snapshot: Snapshot | None = table.current_snapshot()
    current = snapshot
    while snapshot is not None:
        found = snapshot.summary.additional_properties if snapshot.summary else {}
        if OFFSETS in found:
            topics = {
                topic: TopicOffsets(held["id"], {int(part): offset for part, offset in held["next"].items()})
                for topic, held in json.loads(found[OFFSETS]).items()
            }
            return Progress(topics, tuple(json.loads(found.get(GAPS, "[]"))), json.loads(found.get(FINAL, "{}")))
        snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None
    if current is not None:  # from the start again would double every row
        raise MantaError(
            f"lake: table {table.name()[-1]}: snapshot {current.snapshot_id} was made by another program, and no older "
            f"one with {OFFSETS} is left: found no offsets, wanted those up to which the table was read"
        )
    return Progress()


def append(table: Table, rows: pa.Table, progress: Progress, *, max_open_partitions: int) -> int:
    """Appends rows (none is allowed: the offsets still move) and says where reading goes on, in one commit.

    At most `max_open_partitions` files are written (more only of one partition that exceeds 512 MB); rows of the
    partitions with the fewest go into one file without a partition.

    Args:
        table: as it was when its offsets were read; any commit by another since then makes this one fail.
        rows: the table's columns, in any order of rows; `arrival_time` is set here.
        progress: the new offsets.
        max_open_partitions: `settings.lake.max_open_partitions`.

    Returns:
        The id of the new snapshot.

    Raises:
        pyiceberg.exceptions.CommitFailedException: another commit was first; nothing was appended.
    """
    if ARRIVAL_TIME in table.schema().column_names and ARRIVAL_TIME not in rows.schema.names:
        now = pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC"))
        rows = rows.append_column(ARRIVAL_TIME, pa.repeat(now, len(rows)))
    transaction = table.transaction()
    added = AppendFiles(
        operation=Operation.APPEND, transaction=transaction, io=table.io, snapshot_properties=progress.properties()
    )
    with _alone(table, added._added_data_files):
        with _standing(added):
            for data_file in _write_files(table, rows, max_open_partitions):
                added.append_data_file(data_file)
            added.commit()
        reach("ingest:written")
        transaction.commit_transaction()
    return int(added.snapshot_id)


def replace(table: Table, rows: pa.Table, progress: Progress) -> int:
    """Replaces the content of an unpartitioned table, in one commit with the new offsets.

    Returns:
        The id of the new snapshot.

    Raises:
        pyiceberg.exceptions.CommitFailedException: another commit was first; nothing has changed.
    """
    transaction = table.transaction()
    change = transaction.update_snapshot(snapshot_properties=progress.properties()).overwrite()
    with _alone(table, change._added_data_files):
        with _standing(change):
            for task in table.scan().plan_files():
                change.delete_data_file(task.file)
            for data_file in _write_files(table, rows, 1):
                change.append_data_file(data_file)
            change.commit()
        reach("ingest:written")
        transaction.commit_transaction()
    return int(change.snapshot_id)


@contextmanager
def _alone(table: Table, written: Sequence[DataFile]) -> Iterator[None]:
    """Where another was first, the data files that nothing will ever refer to are removed (manifests: pyiceberg)."""
    try:
        yield
    except CommitFailedException:
        for data_file in written:
            forget_file(table, data_file)
        raise


@contextmanager
def _standing(change: _SnapshotProducer[Any]) -> Iterator[None]:
    """What a commit is made on; where its files are gone an erasure was first."""
    try:
        yield
    except FileNotFoundError as error:
        change._clean_all_uncommitted()
        raise CommitFailedException(str(error)) from None


def forget_file(table: Table, file: DataFile) -> None:
    """Removes a data file that nothing refers to; it may be gone already."""
    with suppress(FileNotFoundError):
        table.io.delete(file.file_path)


class AppendFiles(_FastAppendFiles):  # type: ignore[misc]
    """pyiceberg's fast append, for files of more than one partition spec."""

    _added_data_files: list[DataFile]

    def _manifests(self) -> list[ManifestFile]:
        every = self._added_data_files
        own = self._transaction.table_metadata.default_spec_id
        self._added_data_files = [file for file in every if file.spec_id == own]
        try:
            manifests: list[ManifestFile] = super()._manifests()
        finally:
            self._added_data_files = every  # the summary counts them all
        others: dict[int, list[DataFile]] = {}
        for file in every:
            if file.spec_id != own:
                others.setdefault(file.spec_id, []).append(file)
        return [*manifests, *(self._write_manifest(spec_id, files) for spec_id, files in others.items())]

    def _write_manifest(self, spec_id: int, files: list[DataFile]) -> ManifestFile:
        with self.new_manifest_writer(self.spec(spec_id)) as writer:
            for file in files:
                writer.add(
                    ManifestEntry.from_args(
                        status=ManifestEntryStatus.ADDED,
                        snapshot_id=self._snapshot_id,
                        sequence_number=None,
                        file_sequence_number=None,
                        data_file=file,
                    )
                )
        return writer.to_manifest_file()


def _write_files(table: Table, rows: pa.Table, max_open: int) -> Iterator[DataFile]:
    """Parquet files of the rows; nothing refers to them before the commit."""
    if not len(rows):
        return
    metadata = table.metadata
    schema = pyarrow_to_schema(rows.schema, name_mapping=table.schema().name_mapping)
    counter, run = itertools.count(), uuid.uuid4()
    spec = table.spec()
    if spec.is_unpartitioned():
        groups: Iterable[tuple[int | None, pa.Table]] = [(None, rows)]
    else:
        column = table.schema().find_column_name(spec.fields[0].source_id)
        groups = split_by_partition(rows, column, isinstance(spec.fields[0].transform, MonthTransform), max_open)
    plain = metadata.model_copy(update={"default_spec_id": UNPARTITIONED})
    for value, part in groups:
        key = None
        if value is not None:
            key = PartitionKey([PartitionFieldValue(spec.fields[0], value)], spec, table.schema())
        for batches in _file_sized(part):
            task = WriteTask(run, next(counter), schema, batches, partition_key=key)
            for data_file in write_file(table.io, plain if key is None else metadata, iter([task])):
                data_file.spec_id = UNPARTITIONED if key is None else spec.spec_id  # pyiceberg leaves it open
                yield data_file


def split_by_partition(
    rows: pa.Table, column: str, monthly: bool, max_open: int
) -> Iterator[tuple[int | None, pa.Table]]:
    """(months or days since 1970, its rows) for the partitions with the most rows, then (None, all others).

    The rows of one partition at a time are copied.

    Args:
        rows: not empty; `column` is a timestamp without nulls.
        column: the time that partitions.
        monthly: months, else days.
        max_open: most groups that come back.
    """
    unit = "datetime64[M]" if monthly else "datetime64[D]"
    value = pc.cast(rows[column], pa.int64()).to_numpy().astype("datetime64[us]").astype(unit).astype(np.int64)
    present, counts = np.unique(value, return_counts=True)
    if len(present) == 1:
        yield int(present[0]), rows
        return
    room = len(present) if len(present) <= max_open else max_open - 1
    own = np.sort(present[np.argsort(-counts, kind="stable")[:room]])
    place: NDArray[np.int64] = np.searchsorted(own, value)
    place[~np.isin(value, own)] = len(own)  # the stragglers come last
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(np.bincount(place, minlength=len(own) + 1))
    starts = np.concatenate([[0], ends[:-1]])
    names: list[int | None] = [*own.tolist(), None]
    for name, start, end in zip(names, starts.tolist(), ends.tolist(), strict=True):
        if end > start:
            yield name, rows.take(order[start:end])


def _file_sized(rows: pa.Table) -> Iterator[list[pa.RecordBatch]]:
    most = max(1, int(len(rows) * _FILE_BYTES / max(rows.nbytes, 1)))
    for start in range(0, len(rows), most):
        yield rows.slice(start, most).to_batches()


def gap_record(topic: str, partition: int, first: int, end: int, reason: str) -> dict[str, Any]:
    """An accepted gap as the snapshots keep it: offsets `first` to `end` - 1 were never read."""
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"topic": topic, "partition": partition, "from": first, "to": end, "reason": reason, "accepted": moment}
