"""Graph filter: a history spread over the item graph by a linear and an ideal low-pass filter."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from app.errors import MantaError
from app.models.candidate import Progress
from app.models.history_decay import HistoryDecay, decayed_weights, history_matrix
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_graph import PAIRS, USERS_AT_ONCE, ItemGraph
from app.models.neighbour_table import NeighbourTable
from app.models.storage import checked, load_model_files, save_model
from app.models.subspace import OVERSAMPLED, leading_eigenpairs

RANK_FACTOR, MOST_FACTORS = 2.6, 512


class GraphFilterParams(HistoryDecay):
    """Parameters of `graph_filter`."""

    place_tau: float = Field(
        0.0, ge=0, description="Entries j places before the newest weigh exp(-j / place_tau); 0: no decay by place."
    )
    n_factors: int = Field(
        0, ge=0, le=2048, description="Rank of the low-pass filter; 0: 2.6 times the root of the smaller side, <= 512."
    )
    smooth: float = Field(0.3, ge=0, description="Weight of the ideal low-pass filter beside the linear one.")
    target_power: float = Field(
        0.15,
        ge=0,
        le=1,
        description="A score is multiplied by the item's number of users to this power; high: popular.",
    )
    n_neighbours: int = Field(200, ge=1, le=5000, description="Entries of the item graph kept per item, on the mean.")
    passes: int = Field(4, ge=1, le=50, description="Passes of subspace iteration for the low-pass filter.")
    memory_limit_bytes: int = Field(4_000_000_000, gt=0, description="Fitting is refused when it would need more.")


class GraphFilter:
    """Scores h (P + smooth D^-1/2 V V' D^1/2) D^target_power: h the history, D the items' degrees, P the item graph.

    P = R'R off its diagonal, r_ui = w_ui / sqrt(d_u d_i), is the linear low-pass filter; of it the largest entries are
    kept, which costs nothing that can be measured (`docs/experiments.md`). V has P's first n_factors eigenvectors: the
    ideal low-pass filter. A request costs the sum of a few rows of P and one product n_factors × n_items.
    Without `--param` the rank follows the data's shape.
    Searched: smooth 0.05-1, log; target_power 0-0.5; n_factors 64-256; place_tau 0-20.
    Papers: Shen et al., "How powerful is graph convolution for recommendation?", CIKM 2021 (GF-CF); Choi et al.,
    "Blurring-sharpening process models for collaborative filtering", SIGIR 2023 (BSPM, whose sharpening gains nothing
    beside `target_power`).
    """

    family: ClassVar[str] = "graph_filter"
    iterative: ClassVar[bool] = False

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, GraphFilterParams)
        nothing = NeighbourTable(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        self._set(nothing, np.zeros((0, 1), np.float32), np.zeros(0, np.float32))

    def _set(self, table: NeighbourTable, vectors: NDArray[np.float32], source: NDArray[np.float32]) -> None:
        self._table, self._vectors, self._source = table, vectors, source
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
        graph = ItemGraph(data)
        _, vectors = leading_eigenpairs(graph.__matmul__, data.n_items, k, passes=params.passes, seed=seed)
        table = NeighbourTable.of_sparse(graph.largest(params.n_neighbours, graph.powers(params.target_power), seed))
        # Both factors of the low-pass filter come from one matrix, so that it is kept once.
        behind = graph.powers(0.5 + params.target_power)
        self._set(table, vectors * behind[:, None], params.smooth * graph.powers(-0.5) / behind)
        return self

    def neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        return self._table.indptr, self._table.indices, self._table.data

    def entry_weights(self, histories: Histories) -> NDArray[np.float32]:
        return decayed_weights(histories, self.params, self.n_items)

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d): the history in the low-pass filter's space; zeros for an empty one."""
        weights = self.entry_weights(histories)
        known = histories.items < self.n_items
        weights[known] *= self._source[histories.items[known]]
        return np.asarray(history_matrix(histories, weights, self.n_items) @ self._vectors, np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        scores = self._table.score(histories, self.entry_weights(histories))
        scores += self.encode(histories) @ self._vectors.T
        return scores

    def save(self, folder: Path) -> None:
        arrays = {"vectors": self._vectors, "source": self._source}
        save_model(folder, self.family, self.params, self._table.arrays() | arrays, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, GraphFilterParams)
        model = cls(params)
        table = NeighbourTable(arrays["indptr"], arrays["indices"], arrays["data"])
        model._set(table, arrays["vectors"], arrays["source"])
        return model


def rank_for(n_users: int, n_items: int) -> int:
    """The rank of the low-pass filter for data of this shape: 449 for Gowalla's 29,858 × 40,981 (448 was published)."""
    return int(min(max(round(RANK_FACTOR * min(n_users, n_items) ** 0.5), 1), MOST_FACTORS))


def refuse_beyond(limit_bytes: int, data: Interactions, k: int, n_neighbours: int) -> None:
    """Refuses a fit that would pass the limit.

    Raises:
        MantaError: with the bytes needed.
    """
    dense = 4 * (k + OVERSAMPLED) * (4 * data.n_items + min(data.n_users, USERS_AT_ONCE))
    entries = n_neighbours * data.n_items * (2 * 8 + 2 * 16)  # the table, its parts, and their order
    needed = dense + entries + 2 * 12 * len(data) + 32 * PAIRS
    if needed > limit_bytes:
        raise MantaError(
            f"graph_filter: {data.n_items} items, rank {k} and {n_neighbours} neighbours need {needed / 1e9:.1f} GB, "
            f"wanted at most memory_limit_bytes = {limit_bytes / 1e9:.1f} GB"
        )
