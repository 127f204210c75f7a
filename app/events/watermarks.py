"""How far event time has come on each stream (a partition), and which rows are later than the allowance."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]  # microseconds since 1970
Streams = NDArray[np.int32]  # which stream each row came on


class Watermarks:
    """The highest event time of each stream, moved row by row in the order of arrival.

    A row is late if its time is more than the allowance below its own stream's watermark as it was before the row. That
    is a function of the stream alone: neither batch boundaries nor the interleaving of streams change it.
    """

    def __init__(
        self, allowed_lateness_us: int, *, streams: Iterable[int] = (0,), heights: Mapping[int, int] | None = None
    ) -> None:
        """Takes the allowance (microseconds, 0 or more), the streams that count, and where each of them stands."""
        self.allowed_lateness_us = allowed_lateness_us
        self.heights: dict[int, int] = dict(heights or {})
        self._streams = set(streams) | set(self.heights)

    def expect(self, streams: Iterable[int]) -> None:
        """More streams that count; one without a row holds `low` back."""
        self._streams.update(streams)

    @property
    def low(self) -> int | None:
        """What every stream has reached, microseconds; None: one of them has had no row yet."""
        if not self._streams or len(self.heights) < len(self._streams):
            return None
        return min(self.heights.values())

    @property
    def high(self) -> int | None:
        """The highest event time of all, microseconds; None: no rows yet."""
        return max(self.heights.values(), default=None)

    def lift(self, stream: int, to_us: int) -> None:
        """Moves a stream on that has nothing to say, so that it holds nobody back."""
        self._streams.add(stream)
        self.heights[stream] = max(to_us, self.heights.get(stream, to_us))

    def advance(self, times: Times, streams: Streams | None = None) -> NDArray[np.bool_]:
        """Takes rows in their order of arrival; bool (n,): which of them are late.

        Args:
            times: int64 (n,), event times in microseconds.
            streams: int32 (n,), the stream of each row, from 0; None: all on stream 0.
        """
        if not len(times):
            return np.zeros(0, np.bool_)
        if streams is None:
            return self._advance_one(0, times)
        late = np.zeros(len(times), np.bool_)
        for stream in np.flatnonzero(np.bincount(streams)).tolist():
            rows = np.flatnonzero(streams == stream)
            late[rows] = self._advance_one(stream, times[rows])
        return late

    def _advance_one(self, stream: int, times: Times) -> NDArray[np.bool_]:
        self._streams.add(stream)
        highest = int(times.max())
        before = self.heights.get(stream)
        top = highest if before is None else max(highest, before)
        self.heights[stream] = top
        if int(times.min()) >= top - self.allowed_lateness_us:
            return np.zeros(len(times), np.bool_)  # the usual case
        running = np.maximum.accumulate(times)
        if before is not None:
            np.maximum(running, before, out=running)
        late = np.zeros(len(times), np.bool_)
        if before is not None:
            late[0] = times[0] < before - self.allowed_lateness_us
        late[1:] = times[1:] < running[:-1] - self.allowed_lateness_us
        return late
