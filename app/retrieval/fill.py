"""What stands behind the sources: items that came after the bundle, and answers filled from content and popularity."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.models.candidate import VectorModel
from app.models.interactions import Histories, Rows
from app.retrieval.allowed import best
from app.retrieval.catalogue import LiveCatalogue
from app.retrieval.merge import Found

NEWCOMERS = 20  # candidates a question gets at most from the items that came after the bundle


@runtime_checkable
class ContentEncoder(VectorModel, Protocol):
    """A family whose vectors come from an item's columns alone."""

    def encode_items(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """float32 (n, d), unit length or zero."""
        ...


class Fallback:
    """Content vectors of every live row and the order of popularity, both without any source.

    Attributes:
        family: name of the content family in the bundle; empty: it has none.
    """

    def __init__(self, live: LiveCatalogue, popular: Rows, models: Mapping[str, object]) -> None:
        self._live = live
        found = {name: model for name, model in models.items() if isinstance(model, ContentEncoder)}
        self.family = next(iter(found), "")
        self._content: ContentEncoder | None = found.get(self.family)
        self._vectors = np.zeros((live.n_items, 0), np.float32)
        if self._content is not None:
            self._vectors = self._content.item_vectors().copy()
        self._room = self._vectors  # with space for rows to come
        ranked = np.zeros(live.n_items, np.bool_)
        ranked[popular] = True
        self._popular = np.concatenate([popular, np.flatnonzero(~ranked)]).astype(np.int32)
        self._stand_ins = np.arange(live.n_items, dtype=np.int32)
        live.follow(self._put)

    def _put(self, rows: Sequence[int], columns: Sequence[Mapping[str, Any]]) -> None:
        n, held = len(self._live), len(self._room)
        if n > held:
            more = n - held + n // 8
            self._room = np.concatenate([self._room, np.zeros((more, self._room.shape[1]), np.float32)])
            self._stand_ins = np.concatenate([self._stand_ins, np.arange(held, held + more, dtype=np.int32)])
        self._vectors = self._room[:n]
        if self._content is None:
            return
        vectors = self._content.encode_items(columns)
        self._vectors[list(rows)] = vectors
        for row, vector in zip(rows, vectors, strict=True):
            if row >= self._live.n_items and vector.any():
                self._stand_ins[row] = int((self._vectors[: self._live.n_items] @ vector).argmax())

    def stand_ins(self, rows: Rows) -> Rows:
        """The rows, with each item that came after the bundle replaced by the bundle's item most like it.

        The bundle's models know nothing else of it; without content it stays, and they ignore it.
        """
        return rows if len(self._live) == self._live.n_items else self._stand_ins[rows]

    def tastes(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d): content vectors of histories; zeros where nothing is known. d is 0 without content."""
        if self._content is None:
            return np.zeros((len(histories), 0), np.float32)
        return self._content.encode(histories)

    def newcomers(self, taste: NDArray[np.float32], passing: NDArray[np.bool_]) -> Found:
        """Rows that came after the bundle, by content; `passing`: bool over the live rows."""
        first = self._live.n_items
        scores = self._vectors[first:] @ taste
        scores[~passing[first:]] = 0.0
        rows = best(scores, NEWCOMERS, 0.0)
        return rows + np.int32(first), scores[rows]

    def by_content(self, taste: NDArray[np.float32], passing: NDArray[np.bool_], wanted: int) -> Found:
        """At most `wanted` passing rows, most like the taste first."""
        if not taste.any():
            return np.empty(0, np.int32), np.empty(0, np.float32)
        scores = self._vectors @ taste
        scores[~passing] = 0.0
        rows = best(scores, wanted, 0.0)
        return rows, scores[rows]

    def by_popularity(self, passing: NDArray[np.bool_], wanted: int) -> Rows:
        """int32: `wanted` passing rows, most popular first, or all that pass; items without events come last."""
        size = 4 * wanted
        head = self._popular[:size]
        found = head[passing[head]]
        if len(found) < wanted:
            later = np.arange(self._live.n_items, len(self._live), dtype=np.int32)
            order = np.concatenate([self._popular, later])
            found = order[passing[order]]
        return found[:wanted]
