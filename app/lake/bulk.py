"""Rows of files, object stores and databases straight into the lake, a bounded commit at a time, not over Kafka.

They stand at a place of their own (`schema.IMPORTED`), numbered by a counter that every snapshot carries beside the
offsets of Kafka, which stay as they are. A running state knows them once it is rebuilt from the lake.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException

from app.erasure.erased import ErasedNow, Mask, nobody
from app.errors import MantaError
from app.events.blocks import block_hashes, read_here
from app.events.checked_rows import RowReader, from_before, is_erased
from app.events.entities import ENTITY_COLUMNS, ID_FIELDS, latest_versions
from app.events.import_sources import Source
from app.events.schema import EVENTS, IMPORT_PARTITION, IMPORTED
from app.faults import reach
from app.lake.commit import LOST_COMMITS, TopicOffsets, append, replace
from app.lake.identities import KnownEvents
from app.lake.ingest import IngestJob
from app.lake.snapshot import Snapshot, snapshot, snapshot_of
from app.lake.tables import Lake
from app.settings import Settings

log = logging.getLogger(__name__)


def import_into_lake(
    source: Source,
    kind: str,
    column_map: Mapping[str, str],
    settings: Settings,
    lake: Lake,
    *,
    refused_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
    erased: ErasedNow = nobody,
    identities: Path | None = None,
) -> dict[str, Any]:
    """Writes every row of a source into its table of the lake, by the rules of `import_rows`.

    Events that count already (`events.dedup_days`) are left out, so that an import which was killed, or is sent again,
    doubles nothing. Items and users: what Kafka holds of them is ingested first, so that the imported version is the
    newest.

    Args:
        source, kind, column_map, refused_file, progress, erased: as `import_rows`.
        settings: with the broker's address, which items and users need.
        lake: where to; a commit takes at most `ingest.chunk_rows` rows.
        identities: as `IngestJob`.

    Returns:
        As `RowReader.report`, `sent` being what passed the checks, and `written` (rows that are in the lake now),
        `duplicates` (events that counted already), `commits` and `lost_commits` (times another writer was first).

    Raises:
        MantaError: the source cannot be read, or another writer was first too many times; what was committed stays.
        GapError, BrokerUnavailable: as `IngestJob.take`, before items or users.
    """
    with RowReader(
        source, kind, column_map, settings.events, refused_file=refused_file, progress=progress, erased=erased
    ) as rows:
        if kind == EVENTS:
            target: _Target = _Events(settings, lake, erased, identities)
            pieces: Iterator[pa.Table] = (piece.events for piece in rows.events())
        else:
            _take_what_came(settings, lake, kind, erased)
            target, pieces = _Entities(kind, lake, erased), _versions(rows, kind)
        try:
            waiting: list[pa.Table] = []
            for piece in pieces:
                waiting.append(piece)
                if sum(map(len, waiting)) + len(piece) > settings.ingest.chunk_rows:
                    target.write(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                target.write(pa.concat_tables(waiting))
        finally:
            target.close()
        report = rows.report()
    counted = {"written": target.written, "commits": target.commits, "lost_commits": target.lost}
    return report | counted | {"duplicates": report["sent"] - target.written if kind == EVENTS else 0}


class _Target:
    """A table that rows are committed to, however often another writer is first.

    Attributes:
        written: rows that are in the lake now.
        commits: snapshots made.
        lost: times that another writer was first.
    """

    def __init__(self, table: str, lake: Lake, erased: ErasedNow) -> None:
        self.written = self.commits = self.lost = 0
        self._table, self._lake, self._erased = table, lake, erased
        self._now = snapshot(lake, table)

    def write(self, rows: pa.Table) -> None:
        """Commits some rows with the counter behind them.

        Raises:
            MantaError: another writer was first too many times.
        """
        for _ in range(LOST_COMMITS):
            try:
                # Behind the look at the table: an erasure that comes later makes the commit fail
                written = self._commit(rows.filter(pa.array(~self._gone(rows))), self._now)
            except (CommitFailedException, FileNotFoundError):  # of a snapshot that an erasure took away meanwhile
                self.lost += 1
                self._now = snapshot(self._lake, self._table)
                self._another_was_first()
                log.info("import %s: another commit was first; looking again", self._table)
                continue
            if written:
                reach("import:committed")
                self.commits += 1
                self.written += written
                # Not the table as it stands by now: another's commit must make the next one fail
                before, self._now = self._now, snapshot_of(self._table, self._now.source)
                self._committed(before, self._now)
            return
        raise MantaError(f"import: found another commit first {LOST_COMMITS} times, wanted to be first once")

    def _commit(self, rows: pa.Table, now: Snapshot) -> int:
        """Commits on this snapshot; how many rows there were to commit."""
        raise NotImplementedError

    def _gone(self, rows: pa.Table) -> Mask:
        """bool (n,): rows about somebody who has been erased since they were read."""
        raise NotImplementedError

    def _another_was_first(self) -> None:
        """What was remembered may not hold."""

    def _committed(self, before: Snapshot, after: Snapshot) -> None:
        """What was to be committed is."""

    def close(self) -> None:
        """Nothing more comes."""


class _Events(_Target):
    def __init__(self, settings: Settings, lake: Lake, erased: ErasedNow, identities: Path | None) -> None:
        super().__init__(EVENTS, lake, erased)
        self._known = KnownEvents(int(settings.events.dedup_days * 86_400_000), identities)

    def _commit(self, rows: pa.Table, now: Snapshot) -> int:
        hashes = block_hashes(EVENTS, rows)
        assert hashes is not None
        fresh = self._known.fresh(rows, hashes, now)
        if len(fresh):
            keys = pc.coalesce(fresh["user_id"], fresh["session_id"]).cast(pa.binary())
            placed, moved = _placed(fresh, now, {"key": keys})
            append(now.source, placed, moved, max_open_partitions=self._lake.settings.max_open_partitions)
        return len(fresh)

    def _gone(self, rows: pa.Table) -> Mask:
        return from_before(rows, self._erased())

    def _another_was_first(self) -> None:
        self._known.forget()

    def _committed(self, before: Snapshot, after: Snapshot) -> None:
        self._known.committed(before, after)

    def close(self) -> None:
        self._known.close()


class _Entities(_Target):
    def _commit(self, rows: pa.Table, now: Snapshot) -> int:
        placed, moved = _placed(rows, now, {})
        replace(now.source, latest_versions(self._table, now.read(), placed), moved)
        return len(rows)

    def _gone(self, rows: pa.Table) -> Mask:
        erased = self._erased()
        names = rows[ID_FIELDS[self._table]].to_pylist()
        return np.array([is_erased(self._table, name, erased) for name in names], np.bool_)


def _placed(rows: pa.Table, now: Snapshot, more: Mapping[str, pa.ChunkedArray]) -> tuple[pa.Table, Any]:
    """The rows at the next places of imported ones, and what the snapshot then says: Kafka's offsets as they were."""
    first = now.progress.topics.get(IMPORTED, TopicOffsets("", {})).next.get(IMPORT_PARTITION, 0)
    count = len(rows)
    columns = {
        "topic": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([IMPORTED])).cast(pa.string()),
        "partition": pa.array(np.full(count, IMPORT_PARTITION, np.int32)),
        "offset": pa.array(np.arange(first, first + count, dtype=np.int64)),
        **more,
    }
    placed = pa.table([columns.get(field.name, rows[field.name]) for field in rows.schema], schema=rows.schema)
    return placed, now.progress.moved(IMPORTED, TopicOffsets("", {IMPORT_PARTITION: first + count}))


def _versions(rows: RowReader, kind: str) -> Iterator[pa.Table]:
    """Items or users as the lake has them, some at a time."""
    for piece in rows.entities():
        now = time.time_ns() // 1_000_000 * 1000
        found = [
            {ID_FIELDS[kind]: name, "available": True, "columns": orjson.dumps(columns).decode(), "record_time": now}
            for name, columns in piece
        ]
        yield pa.Table.from_pylist(found, ENTITY_COLUMNS[kind])


def _take_what_came(settings: Settings, lake: Lake, topic: str, erased: ErasedNow) -> None:
    job = IngestJob(settings, lake, read_here, erased=erased)
    try:
        job.take(topic)
    finally:
        job.close()
