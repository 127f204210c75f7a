"""The identities of the events that a snapshot holds, for de-duplication against the lake."""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyiceberg.expressions import And, BooleanExpression, GreaterThanOrEqual, LessThan

from app.events.identity import Hashes, identity_hashes
from app.lake.snapshot import Snapshot

_COLUMNS = ("user_id", "session_id", "event_id", "record_time")


def accepted_events(
    events: Snapshot, from_ms: int, before_ms: int | None
) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
    """Batches of (identity hashes uint64 (n, 2), arrival in milliseconds (n,)) of the events that arrived in the range.

    Reads only files whose column bounds reach into it, a batch at a time.

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
    for batch in scan.to_arrow_batch_reader():
        table = pa.Table.from_batches([batch])
        if len(table):
            times = table["record_time"].cast(pa.int64()).to_numpy() // 1000
            yield identity_hashes(table["user_id"], table["session_id"], table["event_id"]), times


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
