"""Which events count already: those of the lake, by the identities that a snapshot holds, and those that came since."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyiceberg.expressions import And, BooleanExpression, GreaterThanOrEqual, LessThan

from app.events.identity import Hashes, SeenEvents, identity_hashes, named_by_place
from app.events.rows import FIRST_ARRIVAL
from app.faults import reach
from app.lake.identity_files import IdentityFiles
from app.lake.scan import pieces
from app.lake.snapshot import Snapshot

_BEHIND_MS = 3_600_000  # what may come behind a message of a clock that is ahead arrived so long ago at the most
_COLUMNS = ("user_id", "session_id", "event_id", "record_time")
IDENTITIES = "identities"  # their folder under MANTA_HOME
_REMEMBERED = 4_000_000  # events, 24 bytes each on the disk: from there on old ones are forgotten

log = logging.getLogger(__name__)


class KnownEvents:
    """The events of the lake that those which come may double, read as far back as they need it.

    Those of the lake are remembered in files (`IdentityFiles`), as of the last commit; those that were taken since, at
    most a commit's, in memory.

    Args:
        horizon_ms: `events.dedup_days` in milliseconds.
        folder: where they stay from one process to the next; None: they do not.
    """

    def __init__(self, horizon_ms: int, folder: Path | None = None) -> None:
        self._horizon_ms = horizon_ms
        self._folder = folder
        self._files: IdentityFiles | None = None
        self._taken = SeenEvents(horizon_ms)
        self._new: list[tuple[Hashes, NDArray[np.int64]]] = []
        self._arrival = 0

    def __len__(self) -> int:
        """How many are remembered of the lake."""
        return 0 if self._files is None else len(self._files)

    def fresh(self, events: pa.Table, hashes: Hashes, now: Snapshot) -> pa.Table:
        """The events that do not count yet; from now on they do.

        Args:
            events: the lake's columns, in the order in which the first one wins.
            hashes: their identities, uint64 (n, 2).
            now: the snapshot on which they will be committed, the same until they are.
        """
        if not len(events):
            return events
        times = events["record_time"].cast(pa.int64()).to_numpy() // 1000
        arrival, now_ms = int(times.min()), int(time.time() * 1000)
        self._arrival = arrival if arrival <= now_ms else now_ms - _BEHIND_MS
        files = self._remembered(now)
        named = named_by_place(events)
        doubled = files.holds(hashes, times, self._horizon_ms) & ~named
        rest = np.flatnonzero(~doubled)
        doubled[rest] = self._taken.duplicates(hashes[rest], times[rest], named[rest])
        accepted = hashes[~doubled], times[~doubled]
        self._taken.add(*accepted)
        self._new.append(accepted)
        return events.filter(pa.array(~doubled)) if doubled.any() else events

    def forget(self) -> None:
        """What was taken: it was not committed."""
        self._taken, self._new = SeenEvents(self._horizon_ms), []

    def committed(self, before: Snapshot, after: Snapshot) -> None:
        """What was taken stands in the lake: our own commit, on `before`, made it `after`."""
        files, new = self._files, self._new
        self.forget()
        if files is None or files.from_ms is None or files.stand != _stand(before):
            return  # not asked since another has committed
        from_ms, least = files.from_ms, self._arrival - self._horizon_ms
        try:
            if len(files) > _REMEMBERED and least - from_ms > self._horizon_ms // 4:
                files.forget_before(least)  # what only a late arrival could double can be read again
                from_ms = least
            for hashes, times in new:
                files.add(hashes, times)
            reach("ingest:remembering")
            files.save(_stand(after), from_ms)
        except OSError as error:  # a full disk: the rows are in the lake, from which they are read again
            log.warning("ingest: identities in %s: %s; they are read from the lake again", self._folder, error)
            files.clear()

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._files is not None:
            self._files.close()
            self._files = None

    def _remembered(self, now: Snapshot) -> IdentityFiles:
        files = self._files
        if files is None:
            files = self._files = IdentityFiles(self._folder)
        stand, least = _stand(now), self._arrival - self._horizon_ms
        if files.stand != stand:
            files.clear()  # another has committed, or it was killed between its commit and its note
        if files.from_ms is None or least < files.from_ms:
            for hashes, times in accepted_events(now, least, files.from_ms):
                files.add(hashes, times)
            files.save(stand, least)
        return files


def _stand(now: Snapshot) -> dict[str, Any]:
    """Says whether the table holds the same events: a compaction changes none of it, an erasure the rows."""
    made = None if now.id is None else now.source.snapshot_by_id(now.id)
    totals = made.summary.additional_properties if made is not None and made.summary else {}
    offsets = {
        topic: {"id": held.topic_id, "next": {str(part): held.next[part] for part in sorted(held.next)}}
        for topic, held in now.progress.topics.items()
    }
    return {"table": str(now.source.metadata.table_uuid), "rows": totals.get("total-records"), "topics": offsets}


def accepted_events(
    events: Snapshot, from_ms: int, before_ms: int | None
) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
    """Batches of (identity hashes uint64 (n, 2), arrival in milliseconds (n,)) of the events that arrived in the range.

    Reads only files whose column bounds reach into it, a few at a time.

    Args:
        events: a snapshot of the table `events`.
        from_ms: arrival (the record's timestamp) from here on.
        before_ms: and before this; None: without end.
    """
    if events.id is None:
        return
    condition: BooleanExpression = GreaterThanOrEqual("record_time", _iso(from_ms))
    if before_ms is not None:
        condition = And(condition, LessThan("record_time", _iso(before_ms)))
    scan = events.source.scan(row_filter=condition, selected_fields=_COLUMNS, snapshot_id=events.id)
    for table in pieces(scan):
        times = table["record_time"].cast(pa.int64()).to_numpy() // 1000
        yield identity_hashes(table["user_id"], table["session_id"], table["event_id"]), times


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(max(milliseconds, FIRST_ARRIVAL) / 1000, UTC).isoformat()
