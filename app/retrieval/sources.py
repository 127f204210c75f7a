"""Candidates from many sources: each family serves by its kind, and one merge makes the retrieval order."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from app.models.candidate import CandidateModel, NeighbourModel, StaticModel, VectorModel
from app.models.interactions import Histories
from app.retrieval.allowed import Allowed, best
from app.retrieval.index import VectorIndex, build_index
from app.retrieval.merge import Found, merge
from app.retrieval.query import Candidates, Query


class Source(Protocol):
    """One family behind the question 'which k items?'."""

    n_items: int

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        """Per history at most k allowed (rows int32, scores float32), best first."""
        ...


class VectorSource:
    """Inner products of an encoded history with item vectors."""

    def __init__(self, model: VectorModel, index: VectorIndex | None = None) -> None:
        self.model = model
        self.index = index if index is not None else build_index(model.item_vectors())
        self.n_items = len(self.index)

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        return self.index.search(np.ascontiguousarray(self.model.encode(histories), np.float32), k, allowed)


class NeighbourSource:
    """Sums of the neighbour rows of a history's items."""

    def __init__(self, model: NeighbourModel) -> None:
        self.model = model
        self._starts, self._indices, self._data = model.neighbours()
        self._indices = np.ascontiguousarray(self._indices, np.int32)
        self._data = np.ascontiguousarray(self._data, np.float32)
        self._lengths = np.diff(self._starts)
        self.n_items = len(self._starts) - 1

    def search(self, histories: Histories, k: int, allowed: Allowed) -> list[Found]:
        scores = self.scores(histories)
        allowed.block(scores, 0.0)
        rows = [best(values, k, 0.0) for values in scores]
        return [(found, values[found]) for found, values in zip(rows, scores, strict=True)]

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, n_items): one sparse product for the whole batch, the sums of each history in its own order."""
        weights = self.model.entry_weights(histories)
        used = (histories.items < self.n_items) & (weights != 0)
        items, owner, weights = histories.items[used], histories.owner[used], weights[used]
        lengths = self._lengths[items]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        taken = np.arange(ends[-1]) + np.repeat(self._starts[items] - ends[:-1], lengths)
        targets = self._indices[taken] + np.repeat(owner * self.n_items, lengths)
        size = len(histories) * self.n_items
        parts = scipy.sparse.csc_array((self._data[taken], targets, ends), shape=(size, len(items)))
        summed: NDArray[np.float32] = parts @ weights.astype(np.float32)
        return summed.reshape(len(histories), self.n_items)


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
        ahead = self._order if mask is not None else self._order[: k + len(banned)]
        keep = np.ones(len(ahead), np.bool_) if mask is None else mask[ahead]
        if len(banned):
            keep &= ~np.isin(ahead, banned)
        places = np.flatnonzero(keep)[:k]
        return ahead[places], self._scores[places]


def source_of(model: CandidateModel) -> Source:
    """The source that serves a fitted model, by its kind.

    Raises:
        TypeError: the model is of none of the three servable kinds.
    """
    if isinstance(model, VectorModel):
        return VectorSource(model)
    if isinstance(model, NeighbourModel):
        return NeighbourSource(model)
    if isinstance(model, StaticModel):
        return StaticSource(model)
    raise TypeError(f"{type(model).__name__}: found neither vectors, neighbours nor static scores, wanted one of them")


def retrieve(sources: Mapping[str, Source], query: Query) -> Candidates:
    """Asks every source of the mix and merges; sources that the bundle lacks are passed over."""
    allowed = Allowed.of(query)
    found = [
        sources[name].search(query.histories, k, allowed) if name in sources else [NOBODY] * len(query.histories)
        for name, k in query.mix
    ]
    return merge(found, tuple(k for _, k in query.mix), query.limit)


NOBODY: Found = (np.empty(0, np.int32), np.empty(0, np.float32))
