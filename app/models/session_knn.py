"""Nearest sessions in linear form: what was next to the history's items in recent sessions, with STAN's decays."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from app.models.candidate import Progress
from app.models.history_decay import HistoryDecay
from app.models.interactions import Catalogue, Interactions
from app.models.neighbour_family import NeighbourFamily
from app.models.neighbour_table import NeighbourTable
from app.models.runs import Runs, at_distances

PAIRS = 2_000_000  # pairs of events summed at once: bounds a block to about 100 MB
MINUTE_MS = 60_000.0


class SessionKnnParams(HistoryDecay):
    """Parameters of `session_knn`."""

    place_tau: float = Field(
        2.0, ge=0, description="Entries j places before the newest weigh exp(-j / place_tau); 0: no decay by place."
    )
    place_floor: float = Field(0.0, ge=0, le=1, description="Weight that decay by place comes down to.")
    gap_minutes: float = Field(
        30.0, ge=0, description="A pause longer than this ends a session; 0: a user is one session."
    )
    sample: int = Field(500, ge=1, description="An item is looked up in this many of its newest sessions.")
    recent: float = Field(
        1.0, ge=0, description="A session that a share a of all sessions came after weighs exp(-a / recent); 0: all 1."
    )
    window: int = Field(20, ge=1, le=200, description="Neighbours in a session at most this many events away count.")
    window_tau: float = Field(4.0, gt=0, description="A neighbour d events away counts exp(-(d - 1) / window_tau).")
    backward: float = Field(0.9, ge=0, le=1, description="What a neighbour before the item counts, after it: 1.")
    length_power: float = Field(
        0.3, ge=0, le=1, description="Sessions of n events count n^-length_power (0.5: cosine of sessions)."
    )
    source_power: float = Field(
        0.6, ge=0, le=1, description="An item in n sessions speaks with n^-source_power: the rare says more (idf)."
    )
    target_power: float = Field(
        0.1, ge=0, le=1, description="Scores are divided by the item's frequency to this power."
    )
    repeat: float = Field(
        2.0,
        ge=0,
        description="An item speaks for itself with this times the data's share of events that repeat an item of their "
        "session, times all that it says of others; 0: never.",
    )
    n_neighbours: int = Field(500, ge=1, le=5000, description="Neighbours kept per item.")


class SessionKnn(NeighbourFamily):
    """Row i sums over the newest `sample` sessions s with i, and over the events j near i in them,

    exp(-age(s) / recent) |s|^-length_power exp(-(|d| - 1) / window_tau) / (n_i^source_power n_j^target_power),

    d the places from i to j, `backward` times as much for d < 0; j = i has `repeat` × (the data's share of events that
    repeat an item of their session) × the rest of the row. A history sums its items' rows, each decayed by its place:
    with the age of the session and the distance in it, STAN's three decays. Session-kNN keeps the k sessions that share
    most with the history and sums over these; summed over all of an item's recent sessions it is linear in the history,
    so that no session has to be kept, and a request costs the sum of a few short rows. Age counts in sessions, not in
    days, so that old data serve as well.
    Searched: place_tau 0.5-10, log; recent 0.1-3, log; window_tau 1-20, log; backward 0.2-1; length_power 0-1;
    source_power 0-1; target_power 0-0.5.
    Papers: Jannach and Ludewig, "When recurrent neural networks meet the neighborhood for session-based
    recommendation", RecSys 2017; Garg et al., "Sequence and time aware neighborhood for session-based
    recommendations: STAN", SIGIR 2019; Ludewig et al., "Empirical analysis of session-based recommendation
    algorithms", UMUAI 2021 (V-SKNN).
    """

    family: ClassVar[str] = "session_knn"
    params_type: ClassVar[type[SessionKnnParams]] = SessionKnnParams
    params: SessionKnnParams

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        del catalogue, seed, progress
        self.n_items = data.n_items
        runs = Runs.of(data, self.params.gap_minutes * MINUTE_MS)
        own = self.params.repeat * runs.repeats()
        blocks = (with_own(block, start, own) for start, block in self._blocks(runs))
        self._table = NeighbourTable.of_blocks(blocks, self.params.n_neighbours, diagonal=own > 0)
        return self

    def _blocks(self, runs: Runs) -> Iterator[tuple[int, csr_matrix]]:
        """Rows of the item-item matrix, some items at a time, with the number of the first."""
        params, run = self.params, runs.run
        worth = np.repeat(session_worth(runs, params), runs.lengths) * runs.weights
        frequency = np.maximum(np.bincount(runs.items, minlength=runs.n_items), 1).astype(np.float64)
        columns = frequency**-params.target_power
        rooms = ((1, runs.ahead(), 1.0), (-1, runs.behind(), params.backward))
        newest_first = np.lexsort((runs.age[run], runs.items))
        firsts = np.concatenate([[0], np.cumsum(np.bincount(runs.items, minlength=runs.n_items))])
        held = newest_first[np.arange(len(run)) - firsts[runs.items[newest_first]] < params.sample]
        firsts = np.concatenate([[0], np.cumsum(np.bincount(runs.items[held], minlength=runs.n_items))])
        reach = np.minimum(rooms[0][1], params.window) + np.minimum(rooms[1][1], params.window)
        pairs = np.concatenate([[0], np.cumsum(reach[held])])[firsts]
        for start, end in _cuts(pairs, PAIRS):
            some = held[firsts[start] : firsts[end]]
            rows: list[NDArray[np.integer[Any]]] = [np.zeros(0, np.int64)]
            others, values = [np.zeros(0, np.int32)], [np.zeros(0)]
            for side, room, share in rooms:
                for distance, positions in at_distances(some, room, params.window):
                    rows.append(runs.items[positions] - start)
                    others.append(runs.items[positions + side * distance])
                    values.append(worth[positions] * (share * np.exp(-(distance - 1) / params.window_tau)))
            row, other = np.concatenate(rows), np.concatenate(others)
            value = np.concatenate(values) * columns[other] * (frequency[row + start] ** -params.source_power)
            yield start, csr_matrix((value.astype(np.float32), (row, other)), shape=(end - start, runs.n_items))


def with_own(block: csr_matrix, start: int, share: float) -> csr_matrix:
    """Rows from `start` on, their entries for the item itself replaced by `share` times all others."""
    here = np.arange(block.shape[0])
    block.data[block.indices == np.repeat(here + start, np.diff(block.indptr))] = 0.0
    own = (np.asarray(block.sum(axis=1)).ravel() * share).astype(np.float32)
    return (block + csr_matrix((own, (here, here + start)), shape=block.shape)).tocsr()


def session_worth(runs: Runs, params: SessionKnnParams) -> NDArray[np.float64]:
    """float64 (R,): what each session counts, by its age and its length."""
    recency = np.exp(runs.age / -params.recent) if params.recent > 0 else np.ones(len(runs.age))
    return np.asarray(recency * runs.lengths.astype(np.float64) ** -params.length_power)


def _cuts(pairs: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most `most` pairs each, one row at least; pairs (n + 1,) counts those before each row."""
    start, n = 0, len(pairs) - 1
    while start < n:
        end = int(np.searchsorted(pairs, pairs[start] + most, side="right")) - 1
        end = min(max(end, start + 1), n)
        yield start, end
        start = end
