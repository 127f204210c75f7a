"""What windows are made of: grouping, sessions and running windows over sorted rows, in columns."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.sessions import session_begins

# Columns that windows have besides their keys and sums.
START, END, COUNT, LAST = "start", "end", "count", "last"
_NOTHING_IS_ZERO = pc.ScalarAggregateOptions(min_count=0)


def grouped(rows: pa.Table, by: Sequence[str], sums: Sequence[str], *, count: str | None) -> pa.Table:
    """`by`, `count`, `sums` per distinct `by`; `count` names the column of counts to add up, None: rows are counted."""
    wanted: list[tuple[object, ...]] = [([], "count_all") if count is None else (count, "sum")]
    wanted += [(name, "sum", _NOTHING_IS_ZERO) for name in sums]
    return rows.group_by(list(by), use_threads=False).aggregate(wanted).rename_columns([*by, COUNT, *sums])


def key_codes(rows: pa.Table, keys: Sequence[str]) -> NDArray[np.int64]:
    """int64 (n,): equal where all keys are equal (null equals null)."""
    codes = np.zeros(len(rows), np.int64)
    for name in keys:
        column = rows[name].combine_chunks()
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        mixed = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy().astype(np.int64)
        codes = np.unique(mixed, return_inverse=True)[1].astype(np.int64)  # small again: no overflow with many keys
    return codes


def merged_sessions(rows: pa.Table, keys: Sequence[str], sums: Sequence[str], gap_us: int) -> pa.Table:
    """Sessions out of sessions and single rows: `keys`, `start`, `last`, `count`, `sums`.

    Two belong together where not more than `gap_us` lies between them.
    """
    codes = key_codes(rows, keys)
    first, last = rows[START].to_numpy(), rows[LAST].to_numpy()
    order = np.lexsort((first, codes))
    codes, first, last = codes[order], first[order], last[order]
    # The latest end so far of each key: keys ascend, so one running maximum over (key, rank of the time) does it
    times, ranks = np.unique(last, return_inverse=True)
    reached = np.maximum.accumulate(codes * len(times) + ranks)
    latest = times[reached % len(times)]
    heads = np.flatnonzero(session_begins(codes, first, latest, gap_us))
    tails = np.append(heads[1:], len(codes)) - 1
    found = rows.select(list(keys)).take(pa.array(order[heads]))
    found = found.append_column(START, pa.array(first[heads])).append_column(LAST, pa.array(latest[tails]))
    for name in (COUNT, *sums):
        values = _numbers(rows, name)[order]
        found = found.append_column(name, pa.array(np.add.reduceat(values, heads)))
    return found


def sliding_totals(points: pa.Table, keys: Sequence[str], sums: Sequence[str], size_us: int) -> pa.Table:
    """For each point (`keys`, `end`, `count`, `sums`): the totals of its key's points in (end - size, end]."""
    codes, ends = key_codes(points, keys), points[END].to_numpy()
    order = np.lexsort((ends, codes))
    codes, ends = codes[order], ends[order]
    times, ranks = np.unique(ends, return_inverse=True)
    width = len(times) + 1
    oldest = np.searchsorted(times, ends - size_us, side="right")  # rank of the first time within
    below = np.searchsorted(codes * width + ranks, codes * width + oldest, side="left")
    found = points.take(pa.array(order))
    for name in (COUNT, *sums):
        total = range_sums(_numbers(found, name), below, np.arange(1, len(found) + 1))
        found = found.set_column(found.schema.get_field_index(name), name, pa.array(total))
    return found


def range_sums(
    values: NDArray[np.int64] | NDArray[np.float64], first: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """(m,): the sums of values[first:end], of m ranges.

    Integers by the difference of running sums, which is exact. A running sum of floats would carry the rounding of
    everything before the range into it, of other keys too: they are added up in blocks of 1, 2, 4, ... that lie wholly
    in the range.
    """
    if values.dtype == np.int64:
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
        exact: NDArray[np.int64] = running[end] - running[first]
        return exact
    total, first, end, blocks = np.zeros(len(first)), first.copy(), end.copy(), values
    while (open_ := first < end).any():
        odd = np.flatnonzero(open_ & (first & 1 == 1))
        total[odd] += blocks[first[odd]]
        first[odd] += 1
        odd = np.flatnonzero((first < end) & (end & 1 == 1))
        end[odd] -= 1
        total[odd] += blocks[end[odd]]
        blocks = blocks[: len(blocks) // 2 * 2].reshape(-1, 2).sum(axis=1)
        first, end = first >> 1, end >> 1
    return total


def _numbers(rows: pa.Table, name: str) -> NDArray[np.int64] | NDArray[np.float64]:
    values = pc.fill_null(rows[name], 0)
    wanted = np.float64 if pa.types.is_floating(values.type) else np.int64
    numbers: NDArray[np.int64] | NDArray[np.float64] = values.to_numpy().astype(wanted)
    return numbers
