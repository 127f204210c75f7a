"""What the features know of each item by its columns; grows as items arrive while serving."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.features.spec import FeatureSpec
from app.models.interactions import Catalogue
from app.models.vectors import unit_vectors


class ItemFeatures:
    """Content arrays of the live rows: those of the bundle, then those that arrived later.

    Not thread-safe: the gateway's event loop owns it.

    Attributes:
        content: float32 (n, spec.width), unit length or zero.
        numbers: float32 (n, len(spec.numbers)), standardised; 0 where missing.
        vectors: float32 (n, size) a vector column of the spec, unit length or zero.
    """

    __slots__ = ("_content", "_n", "_numbers", "_vectors", "spec")

    def __init__(
        self,
        spec: FeatureSpec,
        content: NDArray[np.float32],
        numbers: NDArray[np.float32],
        vectors: Sequence[NDArray[np.float32]],
    ) -> None:
        self.spec, self._content, self._numbers, self._n = spec, content, numbers, len(content)
        self._vectors = list(vectors)

    @classmethod
    def of(cls, spec: FeatureSpec, catalogue: Catalogue) -> "ItemFeatures":
        """The arrays of a catalogue's items."""
        wanted = [*(column.name for column in spec.terms), *(column.name for column in spec.numbers)]
        held = [name for name in dict.fromkeys(wanted) if name in catalogue.columns.column_names]
        rows = catalogue.columns.select(held).to_pylist() if held else [{}] * len(catalogue)
        nothing = pa.chunked_array([pa.nulls(len(catalogue), pa.list_(pa.float32()))])
        vectors = [
            unit_vectors(
                catalogue.columns.column(v.name) if v.name in catalogue.columns.column_names else nothing, v.size
            )
            for v in spec.vectors
        ]
        return cls(spec, spec.content(rows), spec.standardised(rows), vectors)

    def __len__(self) -> int:
        return self._n

    @property
    def content(self) -> NDArray[np.float32]:
        return self._content[: self._n]

    @property
    def numbers(self) -> NDArray[np.float32]:
        return self._numbers[: self._n]

    @property
    def vectors(self) -> list[NDArray[np.float32]]:
        return [vectors[: self._n] for vectors in self._vectors]

    def copy(self) -> "ItemFeatures":
        """An independent copy, for a replica that will put items of its own."""
        return ItemFeatures(self.spec, self.content.copy(), self.numbers.copy(), [v.copy() for v in self.vectors])

    def put(self, row: int, columns: Mapping[str, Any]) -> None:
        """Sets the columns of one row; rows between the end and `row` become zero."""
        self.put_many([row], [columns])

    def put_many(self, rows: Sequence[int], columns: Sequence[Mapping[str, Any]]) -> None:
        """Sets the columns of several rows."""
        if not rows:
            return
        self._reserve(max(rows) + 1)
        self._content[list(rows)] = self.spec.content(columns)
        self._numbers[list(rows)] = self.spec.standardised(columns)
        for column, vectors in zip(self.spec.vectors, self._vectors, strict=True):
            vectors[list(rows)] = unit_vectors([values.get(column.name) for values in columns], column.size)

    def _reserve(self, n: int) -> None:
        if n > len(self._content):
            more = max(n, len(self._content) + len(self._content) // 4 + 64) - len(self._content)
            self._content, self._numbers = _longer(self._content, more), _longer(self._numbers, more)
            self._vectors = [_longer(vectors, more) for vectors in self._vectors]
        self._n = max(self._n, n)


def _longer(rows: NDArray[np.float32], more: int) -> NDArray[np.float32]:
    return np.concatenate([rows, np.zeros((more, rows.shape[1]), np.float32)])
