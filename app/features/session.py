"""The current session of each history: the one that its newest entry is in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.events.sessions import session_begins
from app.models.interactions import Histories

SESSION_ITEMS = 30  # newest entries of a session whose content is looked at


@dataclass(frozen=True, slots=True)
class CurrentSession:
    """B sessions, as of their newest entry: no clock and no later event moves them.

    Attributes:
        events: int64 (B,), entries; 0 without a history.
        minutes: float64 (B,), from the first to the newest entry.
        distinct: float64 (B,), share of different items among the SESSION_ITEMS newest entries; 0 without a history.
        owner: int64 (N,), the question of each of the SESSION_ITEMS newest entries.
        items: int32 (N,), their rows.
    """

    events: NDArray[np.int64]
    minutes: NDArray[np.float64]
    distinct: NDArray[np.float64]
    owner: NDArray[np.int64]
    items: NDArray[np.int32]

    @classmethod
    def of(cls, histories: Histories, gap_s: float) -> "CurrentSession":
        """`gap_s`: the longest silence within a session, seconds."""
        ends, count = histories.offsets[1:], len(histories.items)
        begins = session_begins(histories.owner, histories.times, histories.times, int(gap_s * 1000))
        newest = np.maximum.accumulate(np.where(begins, np.arange(count), 0)) if count else np.zeros(0, np.int64)
        some = histories.lengths > 0
        first = ends.copy()
        first[some] = newest[ends[some] - 1]
        minutes = np.zeros(len(histories))
        minutes[some] = (histories.times[ends[some] - 1] - histories.times[first[some]]) / 60_000.0
        last, owner = _places(np.maximum(first, ends - SESSION_ITEMS), ends)
        items = histories.items[last]
        width = int(items.max()) + 1 if count else 1
        pairs = np.sort(owner * width + items)
        different = pairs[np.diff(pairs, prepend=-1) != 0] // width
        distinct = np.bincount(different, minlength=len(histories)) / np.maximum(
            np.bincount(owner, minlength=len(histories)), 1
        )
        return cls(
            events=ends - first,
            minutes=minutes,
            distinct=distinct,
            owner=owner,
            items=items,
        )


def _places(first: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places from each first to before each end, the question of each)."""
    lengths = ends - first
    before = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(first)), lengths)
    return np.arange(len(owner)) + np.repeat(first - before, lengths), owner
