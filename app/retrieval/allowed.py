"""Which rows each question of a batch may get, and the best of a score matrix under that."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Rows
from app.retrieval.query import Query

NOTHING = np.empty(0, np.int32)


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

    def block(self, scores: NDArray[np.float32], value: float) -> None:
        """Writes `value` into float32 (B, n) `scores` wherever a row is not allowed, in place."""
        n = scores.shape[1]
        if len(self.banned):
            flat = np.repeat(np.arange(len(self), dtype=np.int64) * n, np.diff(self.offsets)) + self.banned
            known = self.banned < n
            scores.reshape(-1)[flat if known.all() else flat[known]] = value
        for question in np.flatnonzero(self.mask_of >= 0):
            scores[question][~self.masks[self.mask_of[question]]] = value


def best(values: NDArray[np.float32], k: int, above: float) -> Rows:
    """The at most k indices with the highest values greater than `above`, best first, the lower index among equals.

    Exact; a threshold from a sample spares most of the selection.
    """
    n = len(values)
    index: NDArray[np.intp] | None = None
    if n > 16 * k and n > 2048:
        sample = values[:: n // (8 * k) if n > 32 * k else 4]
        place = min(len(sample), max(8, int(1.5 * k * len(sample) / n)))
        guess = max(np.partition(sample, len(sample) - place)[len(sample) - place], above)
        chosen = np.flatnonzero(values >= guess if guess > above else values > above)
        if len(chosen) >= k or guess == above:
            index = chosen
    if index is None:
        index = np.flatnonzero(values > above)
    found = values[index]
    if len(index) > k:
        cut = np.partition(found, len(found) - k)[len(found) - k]
        keep = found >= cut
        index, found = index[keep], found[keep]
    order = np.argsort(-found, kind="stable")[:k]
    return index[order].astype(np.int32)
