"""Graph filter: a history blurred over the item graph and sharpened again, as a sparse part and one of low rank."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from app.errors import MantaError
from app.models.candidate import Progress
from app.models.history_decay import HistoryDecay, decayed_weights, history_matrix
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_graph import PAIRS, USERS_AT_ONCE, ItemGraph, Kept
from app.models.neighbour_table import NeighbourTable
from app.models.storage import checked, load_model_files, save_model
from app.models.subspace import OVERSAMPLED, best_product, leading_eigenpairs

RANK_FACTOR, MOST_FACTORS = 2.6, 512


class GraphFilterParams(HistoryDecay):
    """Parameters of `graph_filter`."""

    place_tau: float = Field(
        0.0, ge=0, description="Entries j places before the newest weigh exp(-j / place_tau); 0: no decay by place."
    )
    n_factors: int = Field(
        0, ge=0, le=2048, description="Rank of the low-pass filter; 0: 2.6 times the root of the smaller side, <= 512."
    )
    smooth: float = Field(0.22, ge=0, description="Weight of the ideal low-pass filter beside the linear one.")
    sharpen: float = Field(0.8, ge=0, le=1, description="How far the blurred history is sharpened; 0: not at all.")
    target_power: float = Field(
        0.15, ge=0, le=1, description="A score is multiplied by the item's degree (sum of weights) to this power."
    )
    n_neighbours: int = Field(500, ge=1, le=5000, description="Entries of the item graph kept per item, on the mean.")
    passes: int = Field(4, ge=1, le=50, description="Passes of subspace iteration for the low-pass filter.")
    memory_limit_bytes: int = Field(6_000_000_000, gt=0, description="Fitting is refused when it would need more.")


class GraphFilter:
    """Scores h (P + smooth D^-1/2 V V' D^1/2) (I - sharpen P) D^target_power, h the history, D the items' degrees.

    P = R'R, r_ui = w_ui / sqrt(d_u d_i), is the item graph and the linear low-pass filter; V has its first n_factors
    eigenvectors: the ideal one. Sharpening is one Euler step. So that a request costs a few rows and one product
    n_factors × n_items, h slope S + h A B' stands for all this but D^target_power: S has P's largest entries off its
    diagonal. Below P's largest eigenvalues X, P - sharpen P^2 is about slope P; on their vectors it is exact, as
    V (X - sharpen X^2 - slope V'(S + diag P) V) V'. This and the ideal filter's part are of rank 2 n_factors, and A B'
    is the nearest to them of rank n_factors. `docs/experiments.md` says what is lost.
    Without `--param` the rank follows the data's shape.
    Searched: smooth 0.05-1, log; sharpen 0-1; target_power 0-0.4; n_factors 64-256; place_tau 0-20.
    Papers: Shen et al., "How powerful is graph convolution for recommendation?", CIKM 2021 (GF-CF); Choi et al.,
    "Blurring-sharpening process models for collaborative filtering", SIGIR 2023 (BSPM-EM).
    """

    family: ClassVar[str] = "graph_filter"
    iterative: ClassVar[bool] = False

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, GraphFilterParams)
        nothing = NeighbourTable(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        self._set(nothing, np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))

    def _set(self, table: NeighbourTable, sources: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
        self._table, self._sources, self._vectors = table, sources, vectors
        self.n_items = len(vectors)

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits.

        Raises:
            MantaError: it would need more than `memory_limit_bytes`; nothing was allocated.
        """
        del catalogue, progress
        params = self.params
        k = params.n_factors or rank_for(data.n_users, data.n_items)
        refuse_beyond(params.memory_limit_bytes, data, k, params.n_neighbours)
        graph, sharpen = ItemGraph(data), params.sharpen
        values, basis = leading_eigenpairs(graph.__matmul__, data.n_items, k, passes=params.passes, seed=seed)
        behind = graph.powers(params.target_power)
        kept = graph.largest(params.n_neighbours, behind, seed)
        slope = 1 - sharpen * mean_of_tail(kept, values)
        by_entries = kept.entries @ (basis / behind[:, None]) + kept.diagonal[:, None] * basis
        linear = basis @ (np.diag(values - sharpen * values**2) - slope * (by_entries.T @ basis))
        ideal = graph.powers(0.5)[:, None] * basis
        ideal = params.smooth * (ideal - sharpen * (graph @ ideal))
        left = np.concatenate([basis, graph.powers(-0.5)[:, None] * basis], axis=1)
        right = np.concatenate([linear, ideal], axis=1, dtype=np.float32) * behind[:, None]
        kept.entries.data *= np.float32(slope)
        self._set(NeighbourTable.of_sparse(kept.entries), *best_product(left, right, k))
        return self

    def neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        return self._table.indptr, self._table.indices, self._table.data

    def entry_weights(self, histories: Histories) -> NDArray[np.float32]:
        return decayed_weights(histories, self.params, self.n_items)

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d): the history in the low-pass filter's space; zeros for an empty one."""
        matrix = history_matrix(histories, self.entry_weights(histories), self.n_items)
        return np.asarray(matrix @ self._sources, np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        scores = self._table.score(histories, self.entry_weights(histories))
        scores += self.encode(histories) @ self._vectors.T
        return scores

    def save(self, folder: Path) -> None:
        arrays = {"sources": self._sources, "vectors": self._vectors}
        save_model(folder, self.family, self.params, self._table.arrays() | arrays, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, GraphFilterParams)
        model = cls(params)
        table = NeighbourTable(arrays["indptr"], arrays["indices"], arrays["data"])
        model._set(table, arrays["sources"], arrays["vectors"])
        return model


def rank_for(n_users: int, n_items: int) -> int:
    """The rank of the low-pass filter for data of this shape: 449 for Gowalla's 29,858 × 40,981 (448 was published)."""
    return int(min(max(round(RANK_FACTOR * min(n_users, n_items) ** 0.5), 1), MOST_FACTORS))


def mean_of_tail(kept: Kept, values: NDArray[np.float32]) -> float:
    """The mean of P's eigenvalues below `values`, each weighing itself; 0 where there are none."""
    squares = max(kept.squares - float(np.square(values, dtype=np.float64).sum()), 0.0)
    total = float(kept.diagonal.sum(dtype=np.float64)) - float(values.sum(dtype=np.float64))
    return min(squares / max(total, 1e-12), float(values.min(initial=1.0)))


def refuse_beyond(limit_bytes: int, data: Interactions, k: int, n_neighbours: int) -> None:
    """Refuses a fit that would pass the limit.

    Raises:
        MantaError: with the bytes needed.
    """
    dense = 4 * (k + OVERSAMPLED) * (10 * data.n_items + min(data.n_users, USERS_AT_ONCE))
    entries = n_neighbours * data.n_items * (2 * 8 + 2 * 16)  # the table, its parts, and their order
    needed = dense + entries + 2 * 12 * len(data) + 32 * PAIRS
    if needed > limit_bytes:
        raise MantaError(
            f"graph_filter: {data.n_items} items, rank {k} and {n_neighbours} neighbours need {needed / 1e9:.1f} GB, "
            f"wanted at most memory_limit_bytes = {limit_bytes / 1e9:.1f} GB"
        )
