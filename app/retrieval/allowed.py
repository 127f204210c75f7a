"""Which rows each question of a batch may get, and the best of a score matrix under that."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Rows
from app.retrieval.query import Query

LINE = 16  # values in a cache line
LEAST_SAMPLE = 512  # values of a row that a guess looks at
INFINITE = np.float32(np.inf)
SORTED_ROWS = 64  # rows that one sort takes: their number has the key's top bits


@dataclass(frozen=True, slots=True)
class Allowed:
    """Bans and filters of B questions.

    Attributes:
        banned: int32 rows, question b's are `banned[offsets[b]:offsets[b + 1]]`; rows beyond the index are ignored.
        offsets: int64 (B + 1,).
        masks: bool (M, n) and mask_of int32 (B,), -1: no filter.
    """

    banned: Rows
    offsets: NDArray[np.int64]
    masks: NDArray[np.bool_]
    mask_of: NDArray[np.int32]

    @classmethod
    def of(cls, query: Query) -> "Allowed":
        return cls(query.banned, query.banned_offsets, query.masks, query.mask_of)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def banned_by(self, question: int) -> Rows:
        return self.banned[self.offsets[question] : self.offsets[question + 1]]

    def mask(self, question: int) -> NDArray[np.bool_] | None:
        chosen = self.mask_of[question]
        return None if chosen < 0 else self.masks[chosen]

    def block(self, scores: NDArray[np.float32]) -> None:
        """Writes -inf into float32 (..., B, n) `scores` wherever a row is not allowed, in place."""
        n = scores.shape[-1]
        last = int(self.banned.max(initial=-1))
        ends = self.offsets.tolist()
        for question, chosen in enumerate(self.mask_of.tolist()):
            start, end = ends[question], ends[question + 1]
            if end > start:
                banned = self.banned[start:end]
                scores[..., question, banned if last < n else banned[banned < n]] = -np.inf
            if chosen >= 0:
                scores[..., question, ~self.masks[chosen]] = -np.inf

    def slice(self, start: int, end: int) -> "Allowed":
        """Of the questions start to end - 1."""
        first, last = self.offsets[start], self.offsets[end]
        return Allowed(
            self.banned[first:last], self.offsets[start : end + 1] - first, self.masks, self.mask_of[start:end]
        )


def best(values: NDArray[np.float32], k: int, above: float) -> Rows:
    """The at most k indices with the highest values greater than `above`, best first, the lower index among equals."""
    return best_of_rows(values[None], [k], [above])[0][0]


def best_of_rows(
    scores: NDArray[np.float32], sizes: Sequence[int], above: Sequence[float]
) -> list[tuple[Rows, NDArray[np.float32]]]:
    """`best` of every row of float32 (R, n), n below 2^24, each with its own k: [(indices int32, their values)]. Exact.

    Thresholds guessed from a sample leave little more than k values a row, which one sort of integers puts in order.
    """
    if not scores.size:
        return [(np.empty(0, np.int32), np.empty(0, np.float32))] * len(scores)
    parts = range(0, len(scores), SORTED_ROWS)
    return [
        one
        for start in parts
        for one in _best_of_few(
            scores[start : start + SORTED_ROWS], sizes[start : start + SORTED_ROWS], above[start : start + SORTED_ROWS]
        )
    ]


def _best_of_few(
    scores: NDArray[np.float32], sizes: Sequence[int], above: Sequence[float]
) -> list[tuple[Rows, NDArray[np.float32]]]:
    n = scores.shape[1]
    least = np.nextafter(np.array(above, np.float32), INFINITE)  # `> above` as `>=`
    guesses = _guesses(scores, max(sizes), least)
    counts, flat = _reaching(scores, guesses)
    short = (guesses > least) & (counts < sizes)
    if short.any():
        guesses[short] = least[short]
        counts, flat = _reaching(scores, guesses)
    keys = _falling(scores.reshape(-1)[flat])
    owner = np.arange(len(scores)).repeat(counts)
    keys |= owner << 56
    keys |= flat - owner * n
    keys.sort()
    rows = (keys & 0xFFFFFF).astype(np.int32)
    out = []
    start = 0
    for place, (count, k) in enumerate(zip(counts.tolist(), sizes, strict=True)):
        found = rows[start : start + min(count, k)]
        out.append((found, scores[place][found]))
        start += count
    return out


def _reaching(scores: NDArray[np.float32], least: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many values of each row reach its `least`, and their flat places."""
    count, n = scores.shape
    flat = (scores >= least[:, None]).reshape(-1).nonzero()[0]
    ends = flat.searchsorted(np.arange(0, count * n + 1, n))
    return ends[1:] - ends[:-1], flat


def _guesses(scores: NDArray[np.float32], k: int, least: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (R,): per row a value that about 1.5 k of its values reach, or `least`."""
    count, n = scores.shape
    step = min(n // (8 * k), n // LEAST_SAMPLE)
    if step < 2:
        return least.copy()
    runs = n // (LINE * step)  # whole cache lines, evenly spread
    sample = scores[:, : runs * LINE * step].reshape(count, runs, LINE * step)[:, :, :LINE].reshape(count, -1)
    place = max(sample.shape[1] - int(1.5 * k / step) - 8, 0)
    sample.sort(axis=1)  # a partition is much slower where many values are equal
    return np.maximum(sample[:, place], least)


def _falling(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64: order-reversing integers of the values in bits 24 to 55."""
    bits = (values + np.float32(0)).view(np.int32)  # -0 becomes 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (0x7FFFFFFF - rising.astype(np.int64)) << 24
