"""Candidates from many sources: each family serves by its kind, and one merge makes the retrieval order."""

import itertools
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import _sparsetools

from app.models.candidate import CandidateModel, NeighbourModel, StaticModel, SumModel, VectorModel, WholeModel
from app.models.interactions import Histories
from app.retrieval.allowed import Allowed, best_of_rows
from app.retrieval.index import VectorIndex, build_index
from app.retrieval.merge import Found, merge
from app.retrieval.query import Candidates, Query

# Share of the heaviest entry's weight below which an entry is left out: decay leaves long histories few that count.
NEGLIGIBLE = 1e-4
DENSE_CELLS = 1 << 19  # scores in memory at once: 2 MB, about what a core caches; larger batches go in parts


class Source(Protocol):
    """One family behind the question 'which k items?'."""

    n_items: int

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        """Per history at most k allowed (rows int32, scores float32), best first."""
        ...


class DenseSource(Protocol):
    """A source that scores every row, so that one selection serves all such sources of a mix.

    Attributes:
        above: only scores greater than this are candidates.
    """

    n_items: int
    above: float

    def score_into(self, histories: Histories, out: NDArray[np.float32]) -> None:
        """Adds the scores to float32 (B, n_items) zeros."""
        ...


class VectorSource:
    """Inner products of an encoded history with item vectors."""

    above = -np.inf

    def __init__(self, model: VectorModel, index: VectorIndex | None = None) -> None:
        self.model = model
        self.index = index if index is not None else build_index(model.item_vectors())
        self.n_items = len(self.index)

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        return self.index.search(np.ascontiguousarray(self.model.encode(histories), np.float32), k, allowed)

    def score_into(self, histories: Histories, out: NDArray[np.float32]) -> None:
        queries = np.ascontiguousarray(self.model.encode(histories), np.float32)
        out[:] = self.index.scores(queries)
        out[~queries.any(axis=1)] = -np.inf  # nothing is known of this history


class NeighbourSource:
    """Sums of the neighbour rows of a history's items."""

    above = 0.0

    def __init__(self, model: NeighbourModel) -> None:
        self.model = model
        starts, indices, data = model.neighbours()
        self.n_items = len(starts) - 1
        kind = np.int32 if starts[-1] < 2**31 else np.int64
        self._starts, self._indices = np.ascontiguousarray(starts, kind), np.ascontiguousarray(indices, kind)
        self._data = np.ascontiguousarray(data, np.float32)

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        scores = np.zeros((len(histories), self.n_items), np.float32)
        self.score_into(histories, scores)
        return _best_allowed(scores, k, allowed, self.above)

    def score_into(self, histories: Histories, out: NDArray[np.float32]) -> None:
        """Each history sums in its own order, oldest first, so that it scores the same alone or in a batch.

        Entries that weigh less than NEGLIGIBLE of the heaviest are left out.
        """
        weights = self.model.entry_weights(histories)
        used = ((histories.items < self.n_items) & (weights > _least_weights(histories, weights))).nonzero()[0]
        if not len(used):
            return
        items, weights = histories.items[used].astype(self._starts.dtype), weights[used]
        ends = np.zeros(len(used) + 1, self._starts.dtype)
        np.cumsum(self._starts[items + 1] - self._starts[items], out=ends[1:])
        rows, values = np.empty(ends[-1], ends.dtype), np.empty(ends[-1], np.float32)
        # What scipy's sparse matrices run themselves; making the matrices costs more than the sums.
        _sparsetools.csr_row_index(len(used), items, self._starts, self._indices, self._data, rows, values)
        bounds = used.searchsorted(histories.offsets).tolist()  # entries of each history among those used
        for question, (start, end) in enumerate(itertools.pairwise(bounds)):
            _sparsetools.csc_matvec(
                self.n_items, end - start, ends[start : end + 1], rows, values, weights[start:end], out[question]
            )


def _best_allowed(scores: NDArray[np.float32], k: int, allowed: Allowed, above: float) -> list[Found]:
    """Of each row of scores, which are overwritten where an item may not be shown, the best k greater than `above`."""
    allowed.block(scores)
    return best_of_rows(scores, [k] * len(scores), [above] * len(scores))


def _least_weights(histories: Histories, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (N,): what an entry must weigh more than, from the heaviest of its own history."""
    lengths = histories.lengths
    some = lengths > 0
    if not some.any():
        return weights
    heaviest = np.maximum.reduceat(weights, histories.offsets[:-1][some])
    return np.repeat(np.float32(NEGLIGIBLE) * heaviest, lengths[some])


class SumSource:
    """Inner products and neighbour rows added up; exact whatever the catalogue's size."""

    above = -np.inf

    def __init__(self, model: SumModel) -> None:
        self._vectors, self._neighbours = VectorSource(model, VectorIndex(model.item_vectors())), NeighbourSource(model)
        self.n_items = self._vectors.n_items

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        scores = np.zeros((len(histories), self.n_items), np.float32)
        self.score_into(histories, scores)
        return _best_allowed(scores, k, allowed, self.above)

    def score_into(self, histories: Histories, out: NDArray[np.float32]) -> None:
        self._vectors.score_into(histories, out)
        self._neighbours.score_into(histories, out)


class WholeSource:
    """The best of all that a model scores; what it says of a history without a known item counts as well."""

    above = -np.inf

    def __init__(self, model: WholeModel) -> None:
        self._model, self.n_items = model, model.n_items

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        scores = np.array(self._model.score(histories))
        return _best_allowed(scores, k, allowed, self.above)

    def score_into(self, histories: Histories, out: NDArray[np.float32]) -> None:
        out += self._model.score(histories)


class StaticSource:
    """The same list for everybody."""

    def __init__(self, model: StaticModel) -> None:
        scores = np.ascontiguousarray(model.item_scores(), np.float32)
        self.n_items = len(scores)
        order = np.argsort(-scores, kind="stable").astype(np.int32)
        self._order = order[scores[order] > 0]
        self._scores = scores[self._order]

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        return [self._first(k, allowed, question) for question in range(len(histories))]

    def _first(self, k: int, allowed: Allowed, question: int) -> Found:
        banned, mask = allowed.banned_by(question), allowed.mask(question)
        free = np.ones(self.n_items, np.bool_) if mask is None else mask.copy()
        free[banned[banned < self.n_items]] = False
        ahead = self._order if mask is not None else self._order[: k + len(banned)]
        places = np.flatnonzero(free[ahead])[:k]
        return ahead[places], self._scores[places]


def source_of(model: CandidateModel) -> Source:
    """The source that serves a fitted model, by its kind.

    Raises:
        TypeError: the model is of none of the servable kinds.
    """
    if isinstance(model, SumModel):
        return SumSource(model)
    if isinstance(model, VectorModel):
        return VectorSource(model)
    if isinstance(model, NeighbourModel):
        return NeighbourSource(model)
    if isinstance(model, StaticModel):
        return StaticSource(model)
    if isinstance(model, WholeModel):
        return WholeSource(model)
    raise TypeError(f"{type(model).__name__}: found neither vectors, neighbours nor static scores, wanted one of them")


def retrieve(sources: Mapping[str, Source], query: Query) -> Candidates:
    """Asks every source of the mix and merges; sources that the bundle lacks are passed over."""
    allowed = Allowed.of(query)
    count = len(query.histories)
    found: list[list[Found]] = [[NOBODY] * count for _ in query.mix]
    dense: list[tuple[int, DenseSource]] = []
    for column, (name, k) in enumerate(query.mix):
        source = sources.get(name)
        if _is_dense(source):
            dense.append((column, source))
        elif source is not None:
            found[column] = source.search(query.histories, k, allowed)
    if dense:
        step = max(1, DENSE_CELLS // (len(dense) * dense[0][1].n_items))
        for start in range(0, count, step):
            end = min(count, start + step)
            lists = _search_dense(dense, query.histories.slice(start, end), query.mix, allowed.slice(start, end))
            for (column, _), one in zip(dense, lists, strict=True):
                found[column][start:end] = one
    return merge(found, tuple(k for _, k in query.mix), query.limit)


def _is_dense(source: Source | None) -> TypeGuard[DenseSource]:
    return isinstance(source, NeighbourSource | SumSource | WholeSource) or (
        isinstance(source, VectorSource) and source.index.exact
    )


def _search_dense(
    dense: Sequence[tuple[int, DenseSource]], histories: Histories, mix: Sequence[tuple[str, int]], allowed: Allowed
) -> list[list[Found]]:
    """Per dense source and history the best of the allowed rows: one selection for all."""
    count = len(histories)
    scores = _zeros(len(dense), count, dense[0][1].n_items)
    for out, (_, source) in zip(scores, dense, strict=True):
        source.score_into(histories, out)
    allowed.block(scores)
    sizes = [mix[column][1] for column, _ in dense for _ in range(count)]
    above = [source.above for _, source in dense for _ in range(count)]
    lists = best_of_rows(scores.reshape(len(sizes), -1), sizes, above)
    return [lists[start : start + count] for start in range(0, len(lists), count)]


def _zeros(*shape: int) -> NDArray[np.float32]:
    """Zeros in memory that the thread keeps: fresh pages for every batch cost more than the sums."""
    size = math.prod(shape)
    held: NDArray[np.float32] | None = getattr(_kept, "scores", None)
    if held is None or len(held) < size:
        held = _kept.scores = np.empty(size, np.float32)
    zeros = held[:size].reshape(shape)
    zeros[...] = 0.0
    return zeros


_kept = threading.local()
NOBODY: Found = (np.empty(0, np.int32), np.empty(0, np.float32))
