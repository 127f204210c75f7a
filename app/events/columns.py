"""JSON messages to checked Arrow columns, a batch at a time.

The columns vouch only for what is surely right; whatever they cannot vouch for is judged row by row by the same rules
as at the edge (`rows.py`), so that there is one definition of a valid event.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from app.events.rows import context_of, judge_rows
from app.events.schema import MAX_ID_BYTES, MERGE, SCHEMA_VERSION
from app.settings import EventSettings

MICROS = pa.timestamp("us", "UTC")

# What a reader hands over: one row a message, in offset order within a partition.
RECORDS = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("record_time", pa.int64()),  # milliseconds since 1970, the record's timestamp
        ("key", pa.binary()),
        ("value", pa.binary()),
    ]
)

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

REJECTED = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("record_time", pa.int64()),
        ("key", pa.binary()),
        ("reason", pa.string()),  # the code
        ("detail", pa.string()),  # what was found, what was wanted
        ("raw", pa.binary()),
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
_TIME_PATTERN = r"^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_TYPE_PATTERN = r"^[a-z0-9_.-]{1,64}$"
_YEAR_9999 = 253_370_764_800_000_000  # microseconds; later times are judged by themselves
_QUOTE = ord('"')
_BATCH_ROWS = 50_000
_BLOCK_BYTES = 65_536  # what the parser reads at a time: larger ones leave the processor's cache
_BATCH_BYTES = 64_000_000
_ROWS_JUDGED = 2_000  # as Python objects, one by one, at a time


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a batch: `events` (EVENT_COLUMNS) and `rejected` (REJECTED), each in the order of the records."""

    events: pa.Table
    rejected: pa.Table


def decode(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    """Checks and converts a batch of messages of the topic `events`.

    Args:
        topic: their topic, for event ids made from the position and for dead letters.
        records: RECORDS; a value may be null.
        settings: `settings.events`.
    """
    parts = [_decode_batch(topic, batch, settings) for batch in _batches(records)]
    return Decoded(
        pa.concat_tables([EVENT_COLUMNS.empty_table(), *(part.events for part in parts)]),
        pa.concat_tables([REJECTED.empty_table(), *(part.rejected for part in parts)]),
    )


def _batches(records: pa.Table) -> Iterator[pa.Table]:
    """Slices of bounded rows and bytes, whatever the messages' sizes."""
    start = 0
    sizes = np.cumsum(pc.fill_null(pc.binary_length(records["value"]), 0).to_numpy().astype(np.int64))
    while start < len(records):
        before = sizes[start - 1] if start else 0
        most = int(np.searchsorted(sizes, before + _BATCH_BYTES, side="right")) - start
        rows = max(1, min(_BATCH_ROWS, most))
        yield records.slice(start, rows).combine_chunks()
        start += rows


def _decode_batch(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    values = records["value"].chunk(0)
    candidates = _object_shaped(values)
    wire = _parse(values, candidates)
    if wire is None:
        candidates = candidates[:0]
        fast, vouched = EVENT_COLUMNS.empty_table(), np.empty(0, bool)
    else:
        fast, vouched = _check(topic, wire, records.take(candidates), settings)
    doubtful = np.setdiff1d(np.arange(len(records)), candidates[vouched], assume_unique=True)
    fast = fast.filter(pa.array(vouched)) if not vouched.all() else fast
    if not len(doubtful):
        return Decoded(fast, REJECTED.empty_table())
    accepted, rejected, order = [fast], [REJECTED.empty_table()], [candidates[vouched]]
    for start in range(0, len(doubtful), _ROWS_JUDGED):
        rows = doubtful[start : start + _ROWS_JUDGED]
        good, places, bad = judge_rows(topic, records.take(rows), settings)
        accepted.append(pa.Table.from_pylist(good, EVENT_COLUMNS))
        rejected.append(pa.Table.from_pylist(bad, REJECTED))
        order.append(rows[places])
    kept = np.argsort(np.concatenate(order), kind="stable")
    return Decoded(pa.concat_tables(accepted).take(kept), pa.concat_tables(rejected))


def _object_shaped(values: pa.BinaryArray) -> NDArray[np.int64]:
    """Rows that begin with { and end with }: only of these can the parser's rows be matched to messages."""
    begins = pc.starts_with(values, b"{")
    ends = pc.ends_with(values, b"}")
    return np.flatnonzero(pc.fill_null(pc.and_(begins, ends), False).to_numpy(zero_copy_only=False))


def _parse(values: pa.BinaryArray, rows: NDArray[np.int64]) -> pa.Table | None:
    """The known fields of these rows plus `quotes` (how many " a message has); None: they do not parse as a batch."""
    if not len(rows):
        return None
    chosen = values if len(rows) == len(values) else values.take(rows)
    # A line break after each: no message can end inside the text of another
    lines = pc.binary_join_element_wise(chosen, b"", b"\n")
    _, starts, joined = lines.buffers()
    offsets = np.frombuffer(starts, np.int32)[: len(lines) + 1]
    block = max(_BLOCK_BYTES, int(np.diff(offsets).max()))  # a message must fit into one
    try:
        str(joined, "utf-8")  # the parser itself does not look at UTF-8
        table = pj.read_json(
            pa.BufferReader(joined),
            read_options=pj.ReadOptions(use_threads=False, block_size=block),
            parse_options=pj.ParseOptions(explicit_schema=_WIRE, unexpected_field_behavior="ignore"),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None
    if len(table) != len(rows):
        return None
    quotes = np.add.reduceat(np.frombuffer(joined, np.uint8, offsets[-1]) == _QUOTE, offsets[:-1], dtype=np.int32)
    return table.combine_chunks().append_column("quotes", pa.array(quotes)).append_column("raw", chosen)


def _check(
    topic: str, wire: pa.Table, records: pa.Table, settings: EventSettings
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """EVENT_COLUMNS of all rows, and which of them are surely right."""
    good = _shapes_hold(wire, settings)
    record_us = _numpy(records["record_time"]) * 1000
    event_us, timed = _times(wire["event_time"], good)
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
        "topic": pa.DictionaryArray.from_arrays(np.zeros(len(wire), np.int32), pa.array([topic])).cast(pa.string()),
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
    good = np.ones(len(wire), bool)
    for name in _IDS:
        if wire[name].null_count < len(wire):
            length = pc.binary_length(wire[name])
            good &= _truth(pc.and_(pc.greater_equal(length, 1), pc.less_equal(length, MAX_ID_BYTES)), True)
    names = pc.unique(wire["event_type"])  # few
    names = names.filter(pc.match_substring_regex(names, _TYPE_PATTERN))
    good &= _truth(pc.is_in(wire["event_type"], value_set=names), False)
    user, session = _there(wire["user_id"]), _there(wire["session_id"])
    merges = _truth(pc.equal(wire["event_type"], MERGE), False)
    good &= np.where(merges, user & session, user | session)
    itemless = pc.is_in(wire["event_type"], value_set=pa.array(settings.types_without_item, pa.string()))
    good &= _there(wire["item_id"]) | _truth(itemless, False)
    good &= _truth(pc.is_finite(wire["value"]), True)
    good &= _within(wire["position"], 1, 1_000_000)
    good &= _within(wire["schema_version"], 1, SCHEMA_VERSION)
    return good


def _times(texts: pa.ChunkedArray, good: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds and where there is a time; rows whose time is not surely right are struck from `good`."""
    timed = _there(texts)
    shaped = _truth(pc.match_substring_regex(texts, _TIME_PATTERN), False)
    good &= ~timed | shaped
    try:
        moments = pc.cast(pc.if_else(pa.array(shaped), texts, pa.scalar(None, pa.string())), MICROS)
    except pa.ArrowInvalid:  # one of them is no day or no hour: all are judged one by one
        good &= ~timed
        return np.zeros(len(good), np.int64), timed
    micros = _numpy(pc.fill_null(pc.cast(moments, pa.int64()), 0))
    good &= micros < _YEAR_9999
    return micros, timed


def _more_keys(wire: pa.Table) -> NDArray[np.bool_]:
    """Rows that may have keys beyond the known ones (or nulls, or escaped quotes).

    Each known key costs two quotes and each text two more; any further key adds at least two.
    """
    expected = np.zeros(len(wire), np.int64)
    for name in _WIRE.names:
        if wire[name].null_count < len(wire):
            expected += _there(wire[name]) * (4 if name in _TEXTS else 2)
    different: NDArray[np.bool_] = _numpy(wire["quotes"]) != expected
    return different


def _within(column: pa.ChunkedArray, low: int, high: int) -> NDArray[np.bool_]:
    return _truth(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)), True)


def _there(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return _truth(pc.is_valid(column), False)


def _truth(column: pa.ChunkedArray, when_null: bool) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.fill_null(column, when_null).to_numpy().astype(bool)
    return found


def _numpy(column: pa.ChunkedArray) -> NDArray[np.int64]:
    found: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return found
