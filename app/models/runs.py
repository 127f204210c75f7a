"""Sessions of one user in a row: what the families look at that count pairs of nearby events."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Interactions

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Runs:
    """Events cut into runs (sessions), each oldest first.

    Attributes:
        items: int32 (N,), together by run.
        weights: float32 (N,).
        offsets: int64 (R + 1,), run r is `items[offsets[r]:offsets[r + 1]]`; no run is empty.
        age: float64 (R,), 0 <= age < 1, the share of runs that ended after this one: 0 is the newest.
        n_items: size of the catalogue.
    """

    items: NDArray[np.int32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]
    age: NDArray[np.float64]
    n_items: int

    @classmethod
    def of(cls, data: Interactions, gap_ms: float) -> "Runs":
        """A user's events, cut where more than `gap_ms` passes between two; 0: never.

        Times that start anew with every user (positions in a session) do not say which run is older: there the users'
        numbers do, since users are numbered as the data brings them.
        """
        order = np.argsort(data.users, kind="stable")
        users, times = data.users[order], data.times[order]
        begins = np.ones(len(order), np.bool_)
        begins[1:] = users[1:] != users[:-1]
        first_times = times[begins]
        if gap_ms > 0:
            begins[1:] |= times[1:] - times[:-1] > gap_ms
        offsets = np.append(np.flatnonzero(begins), len(order)).astype(np.int64)
        ends = times[offsets[1:] - 1]
        if len(first_times) and (first_times == first_times[0]).all():
            ends = np.arange(len(ends))
        newest_first = np.argsort(-ends, kind="stable")
        age = np.empty(len(ends))
        age[newest_first] = np.arange(len(ends)) / max(len(ends), 1)
        return cls(data.items[order], data.weights[order], offsets, age, data.n_items)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def run(self) -> NDArray[np.int64]:
        """int64 (N,): the run that each event is in."""
        return np.repeat(np.arange(len(self.age)), self.lengths)

    def repeats(self) -> float:
        """The share of events behind the first of their run whose item was in the run before."""
        behind = len(self.items) - len(self.age)
        distinct = len(np.unique(self.run * self.n_items + self.items))
        return (len(self.items) - distinct) / max(behind, 1)

    def ahead(self) -> NDArray[np.int64]:
        """int64 (N,): how many events of its run come after each."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    def behind(self) -> NDArray[np.int64]:
        """int64 (N,): how many events of its run come before each."""
        return np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)


def at_distances(positions: Positions, room: NDArray[np.int64], window: int) -> Iterator[tuple[int, Positions]]:
    """(d, those positions that have at least d events of their run on that side), d from 1 to at most `window`.

    Args:
        positions: where events stand.
        room: int64 (N,), how many events of its run lie on that side of each event (`Runs.ahead`, `Runs.behind`).
        window: the largest distance.
    """
    for distance in range(1, window + 1):
        positions = positions[room[positions] >= distance]
        if not len(positions):
            return
        yield distance, positions
