"""What every decoder of JSON into Arrow columns does: bounded batches, one parse, checks by column, the rest by row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

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

_TIME_PATTERN = r"^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_YEAR_9999 = 253_370_764_800_000_000  # microseconds; later times are judged by themselves
_QUOTE = ord('"')
_BATCH_ROWS = 50_000
_BLOCK_BYTES = 65_536  # what the parser reads at a time: larger ones leave the processor's cache
_BATCH_BYTES = 64_000_000
_ROWS_JUDGED = 2_000  # as Python objects, one by one, at a time


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a batch: `events` (the topic's columns) and `rejected` (REJECTED), in the order of the records."""

    events: pa.Table
    rejected: pa.Table


# A batch of rows judged one by one: (accepted rows, their places in the batch, rejected rows).
Judged = tuple[list[dict[str, Any]], list[int], list[dict[str, Any]]]
# Columns of parsed messages (`wire`, with `quotes` and `raw`) and their records → accepted columns of all, and which of
# them are surely right.
Check = Callable[[pa.Table, pa.Table], tuple[pa.Table, NDArray[np.bool_]]]


def decode_columns(
    records: pa.Table, wire: pa.Schema, columns: pa.Schema, check: Check, judge: Callable[[pa.Table], Judged]
) -> Decoded:
    """Messages as columns: those that `check` vouches for; all others one by one.

    Args:
        records: RECORDS; a value may be null.
        wire: the known fields as the parser reads them.
        columns: of the result.
        check: by column.
        judge: by row.
    """
    parts = [_decode_batch(batch, wire, columns, check, judge) for batch in _batches(records)]
    return Decoded(
        pa.concat_tables([columns.empty_table(), *(part.events for part in parts)]),
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


def _decode_batch(
    records: pa.Table, wire: pa.Schema, columns: pa.Schema, check: Check, judge: Callable[[pa.Table], Judged]
) -> Decoded:
    values = records["value"].chunk(0)
    candidates = _object_shaped(values)
    parsed = _parse(values, candidates, wire)
    if parsed is None:
        candidates = candidates[:0]
        fast, vouched = columns.empty_table(), np.empty(0, bool)
    else:
        fast, vouched = check(parsed, records.take(candidates))
    doubtful = np.setdiff1d(np.arange(len(records)), candidates[vouched], assume_unique=True)
    fast = fast.filter(pa.array(vouched)) if not vouched.all() else fast
    if not len(doubtful):
        return Decoded(fast, REJECTED.empty_table())
    accepted, rejected, order = [fast], [REJECTED.empty_table()], [candidates[vouched]]
    for start in range(0, len(doubtful), _ROWS_JUDGED):
        rows = doubtful[start : start + _ROWS_JUDGED]
        good, places, bad = judge(records.take(rows))
        accepted.append(pa.Table.from_pylist(good, columns))
        rejected.append(pa.Table.from_pylist(bad, REJECTED))
        order.append(rows[places])
    kept = np.argsort(np.concatenate(order), kind="stable")
    return Decoded(pa.concat_tables(accepted).take(kept), pa.concat_tables(rejected))


def _object_shaped(values: pa.BinaryArray) -> NDArray[np.int64]:
    """Rows that begin with { and end with }: only of these can the parser's rows be matched to messages."""
    begins = pc.starts_with(values, b"{")
    ends = pc.ends_with(values, b"}")
    return np.flatnonzero(pc.fill_null(pc.and_(begins, ends), False).to_numpy(zero_copy_only=False))


def _parse(values: pa.BinaryArray, rows: NDArray[np.int64], wire: pa.Schema) -> pa.Table | None:
    """The known fields of these rows plus `quotes` (how many " a message has) and `raw`; None: they do not parse."""
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
            parse_options=pj.ParseOptions(explicit_schema=wire, unexpected_field_behavior="ignore"),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None
    if len(table) != len(rows):
        return None
    quotes = np.add.reduceat(np.frombuffer(joined, np.uint8, offsets[-1]) == _QUOTE, offsets[:-1], dtype=np.int32)
    return table.combine_chunks().append_column("quotes", pa.array(quotes)).append_column("raw", chosen)


def times(texts: pa.ChunkedArray, good: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds and where there is a time; rows whose time is not surely right are struck from `good`."""
    timed = there(texts)
    shaped = truth(pc.match_substring_regex(texts, _TIME_PATTERN), False)
    good &= ~timed | shaped
    try:
        moments = pc.cast(pc.if_else(pa.array(shaped), texts, pa.scalar(None, pa.string())), MICROS)
    except pa.ArrowInvalid:  # one of them is no day or no hour: all are judged one by one
        good &= ~timed
        return np.zeros(len(good), np.int64), timed
    micros = numbers(pc.fill_null(pc.cast(moments, pa.int64()), 0))
    good &= micros < _YEAR_9999
    return micros, timed


def lengths_hold(wire: pa.Table, names: Sequence[str], most: int) -> NDArray[np.bool_]:
    """bool (n,): every text of these columns that is there has 1 to `most` bytes."""
    good = np.ones(len(wire), bool)
    for name in names:
        if wire[name].null_count < len(wire):
            length = pc.binary_length(wire[name])
            good &= truth(pc.and_(pc.greater_equal(length, 1), pc.less_equal(length, most)), True)
    return good


def within(column: pa.ChunkedArray, low: int, high: int) -> NDArray[np.bool_]:
    """bool (n,): in [low, high], or null."""
    return truth(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)), True)


def there(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """bool (n,): not null."""
    return truth(pc.is_valid(column), False)


def truth(column: pa.ChunkedArray, when_null: bool) -> NDArray[np.bool_]:
    """bool (n,)."""
    found: NDArray[np.bool_] = np.asarray(pc.fill_null(column, when_null).to_numpy(zero_copy_only=False)).astype(bool)
    return found


def numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64 (n,) of a column without nulls."""
    found: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return found


def same_text(text: str, n: int) -> pa.StringArray:
    """A text n times."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([text])).cast(pa.string())
