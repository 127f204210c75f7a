"""JSON messages to checked Arrow columns, a batch at a time.

The columns vouch only for what is surely right; whatever they cannot vouch for is judged row by row by the same rules
as at the edge (`rows.py`), so that there is one definition of a valid event.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.json_columns import (
    MICROS,
    RECORDS,
    REJECTED,
    Decoded,
    Judged,
    decode_columns,
    lengths_hold,
    numbers,
    same_text,
    there,
    times,
    truth,
    within,
)
from app.events.rows import context_of, judge_rows
from app.events.schema import MAX_ID_BYTES, MERGE, SCHEMA_VERSION
from app.settings import EventSettings

__all__ = ["EVENT_COLUMNS", "MICROS", "RECORDS", "REJECTED", "Decoded", "decode"]

# Accepted events, as the lake stores them.
EVENT_COLUMNS = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("event_time", MICROS),
        ("value", pa.float64()),
        ("surface", pa.string()),
        ("request_id", pa.string()),
        ("variant", pa.string()),
        ("bundle", pa.string()),
        ("position", pa.int32()),
        ("context", pa.string()),  # JSON of `context`
        ("extra", pa.string()),  # JSON of every other key
        ("schema_version", pa.int32()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("record_time", MICROS),
        ("key", pa.binary()),
    ]
)

_TEXTS = (
    "event_id",
    "user_id",
    "session_id",
    "item_id",
    "event_type",
    "event_time",
    "surface",
    "request_id",
    "variant",
    "bundle",
)
_IDS = tuple(name for name in _TEXTS if name not in ("event_type", "event_time"))
_NUMBERS = {"schema_version": pa.int64(), "value": pa.float64(), "position": pa.int64()}
_WIRE = pa.schema([*((name, pa.string()) for name in _TEXTS), *_NUMBERS.items()])
_TYPE_PATTERN = r"^[a-z0-9_.-]{1,64}$"


def decode(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    """Checks and converts a batch of messages of the topic `events`.

    Args:
        topic: their topic, for event ids made from the position and for dead letters.
        records: RECORDS; a value may be null.
        settings: `settings.events`.
    """

    def check(wire: pa.Table, rows: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
        return _check(topic, wire, rows, settings)

    def judge(rows: pa.Table) -> Judged:
        return judge_rows(topic, rows, settings)

    return decode_columns(records, _WIRE, EVENT_COLUMNS, check, judge)


def _check(
    topic: str, wire: pa.Table, records: pa.Table, settings: EventSettings
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """EVENT_COLUMNS of all rows, and which of them are surely right."""
    good = _shapes_hold(wire, settings)
    record_us = numbers(records["record_time"]) * 1000
    event_us, timed = times(wire["event_time"], good)
    good &= ~timed | (event_us <= record_us + int(settings.max_future_s * 1_000_000))
    event_us = np.where(timed, event_us, record_us)
    context, extra, known = context_of(wire["raw"], _more_keys(wire) & good)
    good &= known
    columns = {name: wire[name] for name in _TEXTS if name != "event_time"}
    columns |= {
        "event_id": _event_ids(topic, wire["event_id"], records),
        "event_time": pa.array(event_us, pa.int64()).cast(MICROS),
        "value": wire["value"],
        "position": pc.cast(wire["position"], pa.int32(), safe=False),
        "context": context,
        "extra": extra,
        "schema_version": pc.cast(pc.fill_null(wire["schema_version"], 1), pa.int32(), safe=False),
        "topic": same_text(topic, len(wire)),
        "partition": records["partition"],
        "offset": records["offset"],
        "record_time": pa.array(record_us, pa.int64()).cast(MICROS),
        "key": records["key"],
    }
    return pa.table([columns[name] for name in EVENT_COLUMNS.names], schema=EVENT_COLUMNS), good


def _event_ids(topic: str, given: pa.ChunkedArray, records: pa.Table) -> pa.ChunkedArray:
    """The ids that were given, else the place in the log."""
    if not given.null_count:
        return given
    partition, offset = (pc.cast(records[name], pa.string()) for name in ("partition", "offset"))
    return pc.coalesce(given, pc.binary_join_element_wise(topic, partition, offset, "/"))


def _shapes_hold(wire: pa.Table, settings: EventSettings) -> NDArray[np.bool_]:
    """Lengths, ranges and what must be there, all but the time."""
    good = lengths_hold(wire, _IDS, MAX_ID_BYTES)
    names = pc.unique(wire["event_type"])  # few
    names = names.filter(pc.match_substring_regex(names, _TYPE_PATTERN))
    good &= truth(pc.is_in(wire["event_type"], value_set=names), False)
    user, session = there(wire["user_id"]), there(wire["session_id"])
    merges = truth(pc.equal(wire["event_type"], MERGE), False)
    good &= np.where(merges, user & session, user | session)
    itemless = pc.is_in(wire["event_type"], value_set=pa.array(settings.types_without_item, pa.string()))
    good &= there(wire["item_id"]) | truth(itemless, False)
    good &= truth(pc.is_finite(wire["value"]), True)
    good &= within(wire["position"], 1, 1_000_000)
    good &= within(wire["schema_version"], 1, SCHEMA_VERSION)
    return good


def _more_keys(wire: pa.Table) -> NDArray[np.bool_]:
    """Rows that may have keys beyond the known ones (or nulls, or escaped quotes).

    Each known key costs two quotes and each text two more; any further key adds at least two.
    """
    expected = np.zeros(len(wire), np.int64)
    for name in _WIRE.names:
        if wire[name].null_count < len(wire):
            expected += there(wire[name]) * (4 if name in _TEXTS else 2)
    different: NDArray[np.bool_] = numbers(wire["quotes"]) != expected
    return different
