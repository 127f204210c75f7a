"""Item-item neighbours from co-occurrence: cosine or BM25, over whole users or over nearby events."""

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import coo_matrix, csr_matrix, diags

from app.models.candidate import Progress
from app.models.history_decay import HistoryDecay
from app.models.interactions import Catalogue, Interactions
from app.models.neighbour_family import NeighbourFamily
from app.models.neighbour_table import NeighbourTable

BLOCK = 512  # rows of the item-item matrix normalised at once
DENSE = 0.05  # above this share of nonzeros, partitioning dense rows is faster than sorting sparse ones


class ItemKnnParams(HistoryDecay):
    """Parameters of `item_knn`."""

    similarity: Literal["cosine", "bm25"] = Field("cosine", description="How co-occurrence becomes similarity.")
    n_neighbours: int = Field(200, ge=1, le=5000, description="Neighbours kept per item.")
    shrink: float = Field(60.0, ge=0, description="Added to the denominator: few common users count less.")
    target_power: float = Field(
        0.4, ge=0, le=1, description="Exponent of the recommended item's frequency in the denominator; low: popular."
    )
    window: int = Field(
        20, ge=0, le=200, description="Pairs at most this many events apart in a user's sequence; 0: all of a user."
    )
    window_tau: float = Field(20.0, gt=0, description="A pair d events apart counts exp(-(d - 1) / window_tau).")
    backward: float = Field(0.6, ge=0, le=1, description="What a pair counts against its order in time (windows).")
    k1: float = Field(1.2, gt=0, description="BM25: saturation of repeated events.")
    b: float = Field(0.5, ge=0, le=1, description="BM25: how much long histories are discounted.")


class ItemKnn(NeighbourFamily):
    """Row i holds the items that go with i: s(i, j) = c(i, j) / (n_i^(1 - p) n_j^p + shrink).

    c sums products of weights over users (`cosine`: event weights; `bm25`: BM25 weights), or with `window` sums over
    pairs of events at most `window` apart in a user's sequence (a smoothed Markov chain). n is c's marginal, p is
    `target_power`.
    Searched: similarity; n_neighbours 100-500; shrink 5-200, log; target_power 0.1-0.7; window 0-40; window_tau
    5-50, log; backward 0.2-1; place_tau 2-20, log; place_floor 0-0.1.
    Papers: Sarwar et al., "Item-based collaborative filtering", WWW 2001; Aiolli, "Efficient top-n recommendation for
    very large scale binary rated datasets", RecSys 2013 (asymmetric cosine); Robertson and Zaragoza, BM25, 2009.
    """

    family: ClassVar[str] = "item_knn"
    params_type: ClassVar[type[ItemKnnParams]] = ItemKnnParams
    params: ItemKnnParams

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        del catalogue, seed, progress
        self.n_items = data.n_items
        together = nearby_pairs(data, self.params) if self.params.window else self._common_users(data)
        self._table = NeighbourTable.of_blocks(self._similarities(together), self.params.n_neighbours)
        return self

    def _common_users(self, data: Interactions) -> csr_matrix:
        users = csr_matrix((data.weights, (data.users, data.items)), shape=(data.n_users, data.n_items))
        if self.params.similarity == "bm25":
            users = bm25(users, self.params.k1, self.params.b)
        return (users.T @ users).tocsr()

    def _similarities(self, together: csr_matrix) -> Iterator[NDArray[np.float32] | csr_matrix]:
        """Blocks of rows of s; dense where co-occurrence is."""
        power = self.params.target_power
        if self.params.window:
            source, target = np.asarray(together.sum(axis=1)).ravel(), np.asarray(together.sum(axis=0)).ravel()
        else:
            source = target = together.diagonal()
        source = np.maximum(source, 0).astype(np.float64) ** (1 - power)
        target = np.maximum(target, 0).astype(np.float64) ** power
        for start in range(0, self.n_items, BLOCK):
            block = together[start : start + BLOCK].astype(np.float32)
            rows = np.repeat(np.arange(start, start + block.shape[0]), np.diff(block.indptr))
            block.data /= (source[rows] * target[block.indices] + self.params.shrink).astype(np.float32)
            yield block.toarray() if block.nnz > DENSE * block.shape[0] * block.shape[1] else block


def bm25(users: csr_matrix, k1: float, b: float) -> csr_matrix:
    """BM25 weights of a user × item matrix: items are terms, users are documents."""
    counts = users.tocsr().astype(np.float64)
    frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log1p((counts.shape[0] - frequency + 0.5) / (frequency + 0.5))
    length = np.asarray(counts.sum(axis=1)).ravel()
    norm = k1 * (1 - b + b * length / max(float(length.mean()), 1e-12))
    counts.data = counts.data * (k1 + 1) / (counts.data + np.repeat(norm, np.diff(counts.indptr)))
    return (counts @ diags(idf)).tocsr()


def nearby_pairs(data: Interactions, params: ItemKnnParams) -> csr_matrix:
    """c(i, j): how often j came at most `window` events after i in one user's sequence, near ones counting more."""
    order = np.argsort(data.users, kind="stable")
    users, items, weights = data.users[order], data.items[order], data.weights[order]
    shape = (data.n_items, data.n_items)
    total = csr_matrix(shape, dtype=np.float32)
    for distance in range(1, params.window + 1):
        same = users[:-distance] == users[distance:]
        first, second = items[:-distance][same], items[distance:][same]
        decay = np.exp(-(distance - 1) / params.window_tau)
        worth = (weights[:-distance][same] * weights[distance:][same] * decay).astype(np.float32)
        total = total + coo_matrix((worth, (first, second)), shape=shape).tocsr()
    return (total + params.backward * total.T).tocsr() if params.backward else total
