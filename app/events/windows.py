"""Event-time windows over Arrow batches: counts and sums per key, one implementation for batch jobs and live use.

`WindowFold` takes batches in any number and any cut. A row counts if it is not later than the allowance
(`app.events.watermarks`); late ones are counted in `late` and change nothing. A window is closed once no row that may
still count can lie in it: what `closed` has handed out never changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.columns import MICROS
from app.events.watermarks import Streams, Times, Watermarks
from app.events.window_merge import COUNT, END, LAST, START, grouped, merged_sessions, sliding_totals

_FOREVER = np.iinfo(np.int64).max
_LONG_AGO = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Hopping:
    """Windows of `size_us` that begin at every multiple of `step_us` (counted from 1970): [start, start + size)."""

    size_us: int
    step_us: int


def tumbling(size_us: int) -> Hopping:
    """Windows side by side: each time lies in exactly one."""
    return Hopping(size_us, size_us)


@dataclass(frozen=True, slots=True)
class Sliding:
    """A window for each row, of what lies in the `size_us` up to it: (time - size, time]. `end` is the row's time."""

    size_us: int


@dataclass(frozen=True, slots=True)
class Session:
    """Rows of a key not more than `gap_us` apart: [first, last + gap)."""

    gap_us: int


Windows = Hopping | Sliding | Session


def starts(times: Times, windows: Hopping) -> list[tuple[NDArray[np.int64] | None, Times]]:
    """The windows that hold each time: (rows, starts) for each of the overlapping rounds; rows None: all of them."""
    newest = times - times % windows.step_us
    rounds: list[tuple[NDArray[np.int64] | None, Times]] = []
    for back in range(-(-windows.size_us // windows.step_us)):
        start = newest - back * windows.step_us if back else newest
        # Where the step does not divide the size, the oldest window holds only some of the times
        if back * windows.step_us + windows.step_us > windows.size_us:
            rows = np.flatnonzero(times < start + windows.size_us)
            rounds.append((rows, start[rows]))
        else:
            rounds.append((None, start))
    return rounds


def aggregate(rows: pa.Table, times: Times, windows: Hopping, keys: Sequence[str], sums: Sequence[str]) -> pa.Table:
    """Counts and sums of rows per key and window: the columns `keys`, `start` (int64, microseconds), `count`, `sums`.

    Args:
        rows: at least the columns of `keys` and `sums` (numbers; null adds nothing).
        times: int64 (n,), the rows' event times in microseconds.
    """
    chosen = rows.select([*keys, *sums])
    parts = []
    for places, start in starts(times, windows):
        part = chosen if places is None else chosen.take(pa.array(places))
        parts.append(grouped(part.append_column(START, pa.array(start)), [*keys, START], sums, count=None))
    return parts[0] if len(parts) == 1 else grouped(pa.concat_tables(parts), [*keys, START], sums, count=COUNT)


class WindowFold:
    """Open windows of one kind. For one thread.

    Attributes:
        watermarks: how far event time has come.
        late: rows that were later than the allowance, and so are in no window.
    """

    def __init__(
        self,
        windows: Windows,
        keys: Sequence[str],
        sums: Sequence[str] = (),
        *,
        time: str = "event_time",
        stream: str | None = None,
        streams: Iterable[int] = (0,),
        allowed_lateness_us: int = 0,
    ) -> None:
        """Nothing seen yet.

        Args:
            windows: of which kind and size.
            keys: columns by whose values windows are kept apart.
            sums: columns of numbers to add up per window, besides the count of rows.
            time: the column of event times, timestamps in microseconds.
            stream: the column of small integers that says on which stream a row came; None: all on one.
            streams: streams to expect: as long as one of them has had no row, nothing is closed.
            allowed_lateness_us: how far below its stream's watermark a row's time may lie.
        """
        self.windows, self.keys, self.sums = windows, list(keys), list(sums)
        self._time, self._stream = time, stream
        self.watermarks = Watermarks(allowed_lateness_us, streams=streams)
        self.late = 0
        self._held: pa.Table | None = None
        self._closed_to: int | None = None

    def add(self, batch: pa.Table | pa.RecordBatch) -> None:
        """Takes rows in their order of arrival. Columns beyond those named are not looked at."""
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        times: Times = pc.cast(table[self._time], pa.int64()).to_numpy()
        streams: Streams | None = None
        if self._stream is not None:
            streams = table[self._stream].to_numpy().astype(np.int32)
        late = self.watermarks.advance(times, streams)
        if self._closed_to is not None:  # a stream that nobody expected has nothing to add to what is closed
            late |= times < self._closed_to
        if late.any():
            self.late += int(late.sum())
            kept = np.flatnonzero(~late)
            table, times = table.take(pa.array(kept)), times[kept]
        if len(times):
            self._take(table.select([*self.keys, *self.sums]), times)

    def _take(self, rows: pa.Table, times: Times) -> None:
        windows = self.windows
        if isinstance(windows, Hopping):
            self._merge(aggregate(rows, times, windows, self.keys, self.sums), [START])
        elif isinstance(windows, Sliding):
            points = rows.append_column(END, pa.array(times))
            self._merge(grouped(points, [*self.keys, END], self.sums, count=None), [END])
        else:
            alone = rows.append_column(START, pa.array(times)).append_column(LAST, pa.array(times))
            alone = alone.append_column(COUNT, pa.array(np.ones(len(times), np.int64)))
            together = (
                alone if self._held is None else pa.concat_tables([self._held, alone.select(self._held.schema.names)])
            )
            self._held = merged_sessions(together, self.keys, self.sums, windows.gap_us)

    def _merge(self, more: pa.Table, place: list[str]) -> None:
        if self._held is None:
            self._held = more
            return
        both = pa.concat_tables([self._held, more.select(self._held.schema.names)])
        self._held = grouped(both, [*self.keys, *place], self.sums, count=COUNT)

    def closed(self) -> pa.Table:
        """Windows that have closed since the last call: `keys`, `start`, `end`, `count`, `sums`; then they are gone."""
        low = self.watermarks.low
        if low is None:
            return self._results(None, drop=True)
        # A stream that nobody expected may lie far below what is closed, which stays closed
        bound = low - self.watermarks.allowed_lateness_us
        return self._results(bound if self._closed_to is None else max(bound, self._closed_to), drop=True)

    def standing(self) -> pa.Table:
        """All windows that are still held, as they stand now; more rows may change them."""
        return self._results(_FOREVER, drop=False)

    def finish(self) -> pa.Table:
        """Closes everything: what a batch job calls at its end."""
        return self._results(_FOREVER, drop=True)

    def _results(self, bound: int | None, *, drop: bool) -> pa.Table:
        """Windows that lie wholly below `bound` (no row below it may come any more)."""
        held, windows = self._held, self.windows
        if held is None:
            return pa.table({})
        if bound is None:
            return self._shaped(held.slice(0, 0))
        if isinstance(windows, Sliding):
            return self._slid(held, bound, windows, drop=drop)
        if isinstance(windows, Hopping):
            ends = held[START].to_numpy() + windows.size_us
            done = ends <= bound
        else:
            ends = held[LAST].to_numpy() + windows.gap_us
            done = ends < bound
        found = held.append_column(END, pa.array(ends)).filter(pa.array(done))
        if drop:
            self._held = held.filter(pa.array(~done))
            self._closed_to = bound
        return self._shaped(found)

    def _slid(self, held: pa.Table, bound: int, windows: Sliding, *, drop: bool) -> pa.Table:
        """Every row's window below the bound that was not handed out before; older rows stay while they are needed."""
        totals = sliding_totals(held, self.keys, self.sums, windows.size_us)
        ends = totals[END].to_numpy()
        fresh = (ends < bound) & (ends >= (_LONG_AGO if self._closed_to is None else self._closed_to))
        found = totals.append_column(START, pa.array(ends - windows.size_us)).filter(pa.array(fresh))
        if drop:
            self._held = held.filter(pc.greater(held[END], bound - windows.size_us))
            self._closed_to = bound
        return self._shaped(found)

    def _shaped(self, found: pa.Table) -> pa.Table:
        for name in (START, END):
            if name not in found.schema.names:
                found = found.append_column(name, pa.array([], pa.int64()))
            place = found.schema.get_field_index(name)
            found = found.set_column(place, name, found[name].cast(MICROS))
        return found.select([*self.keys, START, END, COUNT, *self.sums])
