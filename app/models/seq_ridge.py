"""Ridge regression of the next item on the decayed sum of the items before it, in closed form."""

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_matrix

from app.errors import MantaError
from app.models.candidate import Progress
from app.models.history_decay import HistoryDecay
from app.models.interactions import Catalogue, Interactions
from app.models.neighbour_family import NeighbourFamily
from app.models.neighbour_table import NeighbourTable
from app.models.runs import Runs, at_distances

NEGLIGIBLE = 1e-5  # the weight from which on an earlier item is left out
PAIRS = 4_000_000  # pairs of events summed at once (100 MB)
CELLS = 4_000_000  # entries of X'Y summed at once (32 MB)
BLOCK = 512  # rows of the item-item matrix made at once


class SeqRidgeParams(HistoryDecay):
    """Parameters of `seq_ridge`."""

    place_tau: float = Field(
        5.0, gt=0, le=100, description="Entries j places before the newest weigh exp(-j / place_tau), fitting too."
    )
    place_floor: float = Field(
        0.0, ge=0, le=1, description="Weight that decay by place comes down to, at answer time only."
    )
    l2: float = Field(30.0, gt=0, description="Regularisation added to the diagonal of the Gram matrix.")
    target_power: float = Field(
        0.0, ge=0, le=1, description="Columns are divided by the item's frequency to this power; high: less popular."
    )
    n_neighbours: int = Field(1000, ge=1, le=100_000, description="Largest weights (by size) kept per item.")
    memory_limit_bytes: int = Field(
        4_000_000_000, gt=0, description="Fitting is refused when its dense matrices would need more."
    )


class SeqRidge(NeighbourFamily):
    """B = (X'X + l2 I)^-1 X'Y: row t of X is x_t = sum over s < t of a^(t-1-s) e(i_s), row t of Y is e(i_t).

    a = exp(-1 / place_tau), e(i) the unit vector of item i, times the event's weight; t goes over all events of all
    users. A history scores x B with its own x. X'Y is a sum over pairs of events; X'X follows from it without another
    pass, since x_(t+1) = a x_t + e(i_t): (1 - a^2) X'X = a (X'Y + Y'X) + diag(e'e) - sum over users of their last x x'.
    Searched: place_tau 2-15, log; l2 3-300, log; target_power 0-0.4.
    Paper: Choi et al., "Session-aware linear item-item models for session-based recommendation", WWW 2021 (SLIT, here
    with one closed form over decayed histories); Steck, "Autoencoders that don't overfit towards the identity", 2020.
    """

    family: ClassVar[str] = "seq_ridge"
    params_type: ClassVar[type[SeqRidgeParams]] = SeqRidgeParams
    params: SeqRidgeParams

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits.

        Raises:
            MantaError: the dense matrices would need more than `memory_limit_bytes` (nothing was allocated), or `l2` is
                too small for 32-bit numbers.
        """
        del catalogue, seed, progress
        refuse_beyond(self.params.memory_limit_bytes, data.n_items)
        self.n_items = data.n_items
        runs = Runs.of(data, 0)
        decay = float(np.exp(-1 / self.params.place_tau))
        follows = following(runs, decay)
        gram = gram_matrix(runs, follows, decay)
        gram[np.diag_indices_from(gram)] += np.float32(self.params.l2)
        try:
            # The transpose of a symmetric matrix is itself, in the order of columns that LAPACK wants.
            factor = cho_factor(gram.T, lower=True, overwrite_a=True)
        except LinAlgError:
            raise MantaError(
                f"seq_ridge: l2: found {self.params.l2}, too small to invert the Gram matrix of {self.n_items} items; "
                "wanted a larger one"
            ) from None
        weights = cho_solve(factor, follows, overwrite_b=True)
        frequency = np.maximum(np.bincount(data.items, minlength=data.n_items), 1)
        columns = (frequency**-self.params.target_power).astype(np.float32)
        blocks = (weights[start : start + BLOCK] * columns for start in range(0, self.n_items, BLOCK))
        self._table = NeighbourTable.of_blocks(blocks, self.params.n_neighbours, signed=True)
        return self


def refuse_beyond(limit_bytes: int, n_items: int) -> None:
    """Refuses a fit whose dense matrices pass the limit.

    Raises:
        MantaError: with the bytes needed.
    """
    needed = 4 * 4 * n_items**2  # float32: X'Y, X'X, the copy of X'Y that LAPACK solves in, and the weights
    if needed > limit_bytes:
        raise MantaError(
            f"seq_ridge: {n_items} items need {needed / 1e9:.1f} GB of dense matrices, "
            f"wanted at most memory_limit_bytes = {limit_bytes / 1e9:.1f} GB"
        )


def following(runs: Runs, decay: float) -> NDArray[np.float32]:
    """X'Y, float32 (n_items, n_items): entry (i, j) sums decay^(d - 1) over pairs where j comes d events after i."""
    total = np.zeros((runs.n_items, runs.n_items), np.float32)
    window, room = reach(decay), runs.ahead()
    by_item = np.argsort(runs.items, kind="stable")
    firsts = np.concatenate([[0], np.cumsum(np.bincount(runs.items, minlength=runs.n_items))])
    rows_at_once = max(1, CELLS // max(runs.n_items, 1))
    for start in range(0, runs.n_items, rows_at_once):
        end = min(start + rows_at_once, runs.n_items)
        block, held = total[start:end].reshape(-1), by_item[firsts[start] : firsts[end]]
        cells, values, waiting = [], [], 0
        for distance, positions in at_distances(held, room, window):
            later = positions + distance
            cells.append((runs.items[positions].astype(np.int64) - start) * runs.n_items + runs.items[later])
            values.append(runs.weights[positions] * runs.weights[later] * np.float32(decay ** (distance - 1)))
            waiting += len(positions)
            if waiting > PAIRS:
                block += np.bincount(np.concatenate(cells), np.concatenate(values), minlength=len(block))
                cells, values, waiting = [], [], 0
        if waiting:
            block += np.bincount(np.concatenate(cells), np.concatenate(values), minlength=len(block))
    return total


def gram_matrix(runs: Runs, follows: NDArray[np.float32], decay: float) -> NDArray[np.float32]:
    """X'X, float32 (n_items, n_items), from X'Y by the recurrence of its rows."""
    gram = follows + follows.T
    gram *= np.float32(decay)
    gram[np.diag_indices_from(gram)] += np.bincount(runs.items, runs.weights**2, minlength=runs.n_items)
    last = last_inputs(runs, decay)
    ends = (last.T @ last).tocoo()
    gram[ends.row, ends.col] -= ends.data
    gram /= np.float32(1 - decay**2)
    return gram


def last_inputs(runs: Runs, decay: float) -> csr_matrix:
    """float32 (R, n_items): x behind the last event of each run."""
    ahead = runs.ahead()
    kept = np.flatnonzero(ahead < reach(decay))
    values = runs.weights[kept] * (decay ** ahead[kept]).astype(np.float32)
    shape = (len(runs.age), runs.n_items)
    return csr_matrix((values, (runs.run[kept], runs.items[kept])), shape=shape)


def reach(decay: float) -> int:
    """How many places back an item still weighs NEGLIGIBLE."""
    return 1 + int(np.log(NEGLIGIBLE) / np.log(decay))
