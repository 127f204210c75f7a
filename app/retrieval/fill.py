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


class ContentRows:
    """The vectors of every live row by one content family: the model's own, and those of rows that came or changed.

    Attributes:
        name: of the family in the bundle.
    """

    def __init__(self, name: str, encoder: ContentEncoder, n_items: int) -> None:
        self.name, self._encoder, self._bundled = name, encoder, n_items
        self._vectors = encoder.item_vectors()
        self._n = n_items
        self._places: dict[int, int] = {}  # rows that came or changed -> where their vectors stand in:
        self._own = np.zeros((0, self._vectors.shape[1]), np.float32)
        self._rows = np.zeros(0, np.int32)  # the row of each of those; both have room for more

    def put(self, rows: Sequence[int], columns: Sequence[Mapping[str, Any]], n: int) -> NDArray[np.float32]:
        """The vectors of rows that came or changed; `n`: how many live rows there are by now."""
        vectors = self._encoder.encode_items(columns)
        places = [self._places.setdefault(row, len(self._places)) for row in rows]
        if len(self._places) > len(self._own):
            more = len(self._places) - len(self._own) + len(self._places) // 4
            self._own = np.concatenate([self._own, np.zeros((more, self._own.shape[1]), np.float32)])
            self._rows = np.concatenate([self._rows, np.zeros(more, np.int32)])
        self._own[places], self._rows[places], self._n = vectors, rows, n
        return vectors

    def _scores(self, taste: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (n,): how much each live row is like a taste."""
        scores = np.zeros(self._n, np.float32)
        scores[: self._bundled] = self._vectors @ taste
        rows, own = self._changed()
        scores[rows] = own @ taste
        return scores

    def _changed(self) -> tuple[Rows, NDArray[np.float32]]:
        """Rows that came or changed, and their vectors."""
        return self._rows[: len(self._places)], self._own[: len(self._places)]

    def most_alike(self, vector: NDArray[np.float32]) -> int:
        """The bundle's row most like a vector."""
        return int(self._scores(vector)[: self._bundled].argmax())

    def tastes(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d): vectors of histories; zeros where nothing is known."""
        return self._encoder.encode(histories)

    def newcomers(self, taste: NDArray[np.float32], passing: NDArray[np.bool_]) -> Found:
        """Rows that came after the bundle, most like the taste first; `passing`: bool over the live rows."""
        rows, own = self._changed()
        later = rows >= self._bundled
        scores = np.zeros(self._n - self._bundled, np.float32)
        scores[rows[later] - self._bundled] = (own @ taste)[later]
        scores[~passing[self._bundled :]] = 0.0
        found = best(scores, NEWCOMERS, 0.0)
        return found + np.int32(self._bundled), scores[found]

    def most_like(self, taste: NDArray[np.float32], passing: NDArray[np.bool_], wanted: int) -> Found:
        """At most `wanted` passing rows, most like the taste first."""
        if wanted < 1 or not taste.any():
            return np.empty(0, np.int32), np.empty(0, np.float32)
        scores = self._scores(taste)
        scores[~passing] = 0.0
        rows = best(scores, wanted, 0.0)
        return rows, scores[rows]


class Fallback:
    """Content vectors of every live row and the order of popularity, both without any source.

    Attributes:
        content: those of each content family of the bundle, in its order.
    """

    def __init__(self, live: LiveCatalogue, popular: Rows, models: Mapping[str, object]) -> None:
        self._live = live
        self.content = tuple(
            ContentRows(name, model, live.n_items)
            for name, model in models.items()
            if isinstance(model, ContentEncoder)
        )
        ranked = np.zeros(live.n_items, np.bool_)
        ranked[popular] = True
        self._popular = np.concatenate([popular, np.flatnonzero(~ranked)]).astype(np.int32)
        self._stand_ins = np.arange(live.n_items, dtype=np.int32)
        live.follow(self._put)

    def _put(self, rows: Sequence[int], columns: Sequence[Mapping[str, Any]]) -> None:
        n, held = len(self._live), len(self._stand_ins)
        if n > held:
            self._stand_ins = np.concatenate([self._stand_ins, np.arange(held, n + n // 8, dtype=np.int32)])
        unknown = {row: place for place, row in enumerate(rows) if row >= self._live.n_items}
        self._stand_ins[list(unknown)] = list(unknown)
        for content in self.content:
            vectors = content.put(rows, columns, n)
            for row, place in list(unknown.items()):
                if vectors[place].any():
                    self._stand_ins[row] = content.most_alike(vectors[place])
                    del unknown[row]  # the first family that knows the item speaks for it

    def stand_ins(self, rows: Rows) -> Rows:
        """The rows, with each item that came after the bundle replaced by the bundle's item most like it.

        The bundle's models know nothing else of it; without content it stays, and they ignore it.
        """
        return rows if len(self._live) == self._live.n_items else self._stand_ins[rows]

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
