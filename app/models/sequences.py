"""Histories and user sequences as padded matrices, for the torch families."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Histories, Interactions

Matrix = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Every user's events together, oldest first.

    Attributes:
        items: int64 (N,), ordered by user, then time.
        first: int64 (N,), where the sequence of each event's user starts.
        offsets: int64 (n_users + 1,).
    """

    items: NDArray[np.int64]
    first: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, data: Interactions) -> "Sequences":
        order = np.argsort(data.users, kind="stable")
        counts = np.bincount(data.users, minlength=data.n_users)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(data.items[order].astype(np.int64), np.repeat(offsets[:-1], counts), offsets)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Positions of events that have an event before them."""
        return np.flatnonzero(np.arange(len(self.items)) > self.first)

    def before(self, positions: NDArray[np.int64], length: int, padding: int) -> Matrix:
        """int64 (B, length): the events before each position, newest first, padded at the end."""
        back = positions[:, None] - 1 - np.arange(length)
        return np.where(back >= self.first[positions][:, None], self.items[np.maximum(back, 0)], padding)

    def windows(self, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """int64 (W, 2), start and end of pieces of at most length + 1 events that cover every target once.

        Consecutive pieces share one event: the last of one is where the next begins. The cuts of each user who needs
        them are shifted at random, so that passes see different beginnings.
        """
        starts, ends = self.offsets[:-1], self.offsets[1:]
        shift = rng.integers(0, length, len(starts)) * (ends - starts > length + 1)
        pieces = (np.maximum(ends - starts - 1, 0) + shift + length - 1) // length
        owner = np.repeat(np.arange(len(starts)), pieces)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begin = starts[owner] - shift[owner] + place * length
        cut = np.stack([np.maximum(begin, starts[owner]), np.minimum(begin + length + 1, ends[owner])], axis=1)
        kept: NDArray[np.int64] = cut[cut[:, 1] - cut[:, 0] >= 2]
        return kept

    def batches(self, length: int, n_events: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """The `windows` of one pass, those of about one length together, at most n_events (or one window) a batch.

        Events are counted with what pads them: windows × events of the longest.
        """
        windows = self.windows(length, rng)
        told = windows[:, 1] - windows[:, 0] - 1
        order = np.argsort(told + rng.random(len(told)), kind="stable")
        batches, start = [], 0
        for end, longest in enumerate(told[order].tolist()):
            if end > start and (end + 1 - start) * longest > n_events:
                batches.append(windows[order[start:end]])
                start = end
        return [*batches, windows[order[start:]]] if len(windows) else []

    def padded(self, windows: NDArray[np.int64], padding: int) -> Matrix:
        """int64 (B, L): the windows' events oldest first, padded at the end."""
        index = windows[:, :1] + np.arange(int((windows[:, 1] - windows[:, 0]).max()))
        return np.where(index < windows[:, 1:], self.items[np.minimum(index, len(self.items) - 1)], padding)


def targets_in(windows: NDArray[np.int64]) -> int:
    """How many events of some windows have one before them."""
    return int((windows[:, 1] - windows[:, 0] - 1).sum())


def newest_first(histories: Histories, n_items: int, length: int) -> Matrix:
    """int64 (B, length): the newest known items of each history, newest first, padded with n_items at the end."""
    items, owner, ahead, _ = _newest(histories, n_items, length)
    matrix = np.full((len(histories), length), n_items, np.int64)
    matrix[owner, ahead] = items
    return matrix


def oldest_first(histories: Histories, n_items: int, length: int) -> tuple[Matrix, NDArray[np.int64]]:
    """The newest `length` known items of each history, oldest first.

    Returns:
        int64 (B, L) padded with n_items at the end, L the longest (at least 1); int64 (B,) how many are known.
    """
    items, owner, ahead, held = _newest(histories, n_items, length)
    matrix = np.full((len(histories), max(int(held.max(initial=0)), 1)), n_items, np.int64)
    matrix[owner, held[owner] - 1 - ahead] = items
    return matrix, held


def _newest(histories: Histories, n_items: int, length: int) -> tuple[NDArray[np.int32], Matrix, Matrix, Matrix]:
    """The newest `length` known entries: items, owners, places counted back from the newest; and how many each has."""
    known = histories.items < n_items
    items, owner = histories.items[known], histories.owner[known]
    held = np.bincount(owner, minlength=len(histories))
    ahead = np.repeat(np.cumsum(held), held) - 1 - np.arange(len(items))
    kept = ahead < length
    return items[kept], owner[kept], ahead[kept], np.minimum(held, length)


def shuffled_batches(n: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """A random order of 0 to n - 1 in batches."""
    order = rng.permutation(n)
    for start in range(0, n, size):
        yield order[start : start + size]
