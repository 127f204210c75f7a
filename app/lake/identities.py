"""Which events count already: those of the lake, by the identities that a snapshot holds, and those that came since."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyiceberg.expressions import And, BooleanExpression, GreaterThanOrEqual, LessThan

from app.events.identity import Hashes, SeenEvents, identity_hashes, named_by_place
from app.events.rows import FIRST_ARRIVAL
from app.lake.scan import pieces
from app.lake.snapshot import Snapshot

_BEHIND_MS = 3_600_000  # what may come behind a message of a clock that is ahead arrived so long ago at the most
_COLUMNS = ("user_id", "session_id", "event_id", "record_time")
_REMEMBERED = 4_000_000  # events, 24 bytes each


class KnownEvents:
    """The events of the lake that those which come may double, read as far back as they need it.

    Args:
        horizon_ms: `events.dedup_days` in milliseconds.
    """

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._seen: SeenEvents | None = None
        self._from: int | None = None  # arrivals from here on are remembered
        self._arrival = 0

    def fresh(self, events: pa.Table, hashes: Hashes, now: Snapshot) -> pa.Table:
        """The events that do not count yet; from now on they do.

        Args:
            events: the lake's columns, in the order in which the first one wins.
            hashes: their identities, uint64 (n, 2).
            now: the snapshot on which they will be committed; the one before, if anything is remembered.
        """
        if not len(events):
            return events
        times = events["record_time"].cast(pa.int64()).to_numpy() // 1000
        arrival, now_ms = int(times.min()), int(time.time() * 1000)
        self._arrival = arrival if arrival <= now_ms else now_ms - _BEHIND_MS
        seen = self._remember(now)
        doubled = seen.duplicates(hashes, times, named_by_place(events))
        seen.add(hashes[~doubled], times[~doubled])
        return events.filter(pa.array(~doubled)) if doubled.any() else events

    def forget(self) -> None:
        """Everything: what was taken was not committed, or another has committed since."""
        self._seen = None

    def tidy(self) -> None:
        """Between commits, when many are remembered: what only a late arrival could double can be read again."""
        if self._seen is not None and self._from is not None and len(self._seen) > _REMEMBERED:
            self._seen.forget_before(self._arrival)
            self._from = max(self._from, self._arrival - self._horizon_ms)

    def _remember(self, now: Snapshot) -> SeenEvents:
        least = self._arrival - self._horizon_ms
        if self._seen is None:
            self._seen, self._from = SeenEvents(self._horizon_ms), None
        if self._from is None or least < self._from:
            for hashes, times in accepted_events(now, least, self._from):
                self._seen.add(hashes, times)
            self._from = least
        return self._seen


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
