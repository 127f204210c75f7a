"""What a history said of its newest entry before the next event settled how much that weighs (`app.weighing`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.weighing import Codes, Weighed

Positions = NDArray[np.int64]
# Ragged histories: items, weights, times, offsets (`app.models.interactions.Histories`).
Columns = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Entries of M events as they were until the next event of the same history came.

    Attributes:
        by: int64 (M,), ascending: the positions in the interactions of the events that settled them.
        at: int64 (M,): the positions of the entries themselves; -1: they weigh nothing by now and stand nowhere.
        items, weights, times: int32, float32, int64 (M,), the entries as they were; weight 0: did not count then.
    """

    by: Positions
    at: Positions
    items: NDArray[np.int32]
    weights: NDArray[np.float32]
    times: NDArray[np.int64]

    @classmethod
    def of(
        cls, weighed: Weighed, owners: Codes, items: NDArray[np.int32], times: NDArray[np.int64], kept: Positions
    ) -> "Unsettled | None":
        """From all events in order; None: every weight is what it was from the beginning.

        Args:
            weighed: weights of n events; both 0 for one that stands in no history.
            owners, items, times: (n,), of each event.
            kept: int64, ascending, the events that are the interactions.
        """
        order = np.argsort(owners, kind="stable")
        place = np.full(len(order), -1, np.int64)
        place[kept] = np.arange(len(kept))
        same = owners[order[1:]] == owners[order[:-1]]
        entry, following = order[:-1][same], order[1:][same]
        changed = (weighed.final[entry] != weighed.before[entry]) & (place[following] >= 0)
        entry, by = entry[changed], place[following[changed]]
        if not len(entry):
            return None
        sorted_by = np.argsort(by)
        entry = entry[sorted_by]
        return cls(by[sorted_by], place[entry], items[entry], weighed.before[entry], times[entry])

    def some(self, kept: NDArray[np.bool_]) -> "Unsettled":
        """Of some of the interactions (bool mask)."""
        position = np.cumsum(kept) - 1
        mine = kept[self.by] & ((self.at < 0) | kept[self.at])
        at = np.where(self.at[mine] < 0, -1, position[self.at[mine]])
        return Unsettled(position[self.by[mine]], at, self.items[mine], self.weights[mine], self.times[mine])

    def relabelled(self, rows: NDArray[np.int32]) -> "Unsettled | None":
        """With other catalogue rows: int32 (n_items,), the new row of each, below 0: not there any more."""
        there = rows[self.items] >= 0
        if not there.any():
            return None
        items = rows[self.items[there]]
        return Unsettled(self.by[there], self.at[there], items, self.weights[there], self.times[there])

    def undone(self, weights: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The weights of all interactions where only some of them (bool mask) have happened.

        What weighed nothing then has its later weight nevertheless: no event comes or goes by this.
        """
        again = (self.at >= 0) & ~kept[self.by] & (self.weights > 0)
        found = weights.copy()
        found[self.at[again]] = self.weights[again]
        return found

    def restored(self, histories: Columns, cases: Positions, oldest: NDArray[np.int64] | None) -> Columns:
        """The histories before each case as they were then.

        Args:
            histories: before each case, with the weights as they became; where one had expired nothing stands.
            cases: int64 (B,), positions of the cases in the interactions.
            oldest: int64 (B,), the earliest time that counts; None: all count.
        """
        place = np.minimum(np.searchsorted(self.by, cases), len(self.by) - 1)
        hit = self.by[place] == cases
        items, weights, times, before = histories
        ends, lengths = before[1:], np.diff(before)
        gone = hit & (self.at[place] >= 0) & (lengths > 0)
        back = hit & (self.weights[place] > 0)
        if oldest is not None:
            back &= self.times[place] >= oldest
        stays = np.ones(len(items), np.bool_)
        stays[ends[gone] - 1] = False
        where = np.cumsum(lengths - gone)[back]
        offsets = np.concatenate([[0], np.cumsum(lengths - gone + back)]).astype(np.int64)
        entry = place[back]
        return (
            np.insert(items[stays], where, self.items[entry]),
            np.insert(weights[stays], where, self.weights[entry]),
            np.insert(times[stays], where, self.times[entry]),
            offsets,
        )
