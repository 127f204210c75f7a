"""What the features know of each item by its columns; grows as items arrive while serving."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.features.spec import FeatureSpec
from app.models.interactions import Catalogue


class ItemFeatures:
    """Content arrays of the live rows: those of the bundle, then those that arrived later.

    Not thread-safe: the gateway's event loop owns it.

    Attributes:
        content: float32 (n, spec.width), unit length or zero.
        numbers: float32 (n, len(spec.numbers)), standardised; 0 where missing.
    """

    __slots__ = ("_content", "_n", "_numbers", "spec")

    def __init__(self, spec: FeatureSpec, content: NDArray[np.float32], numbers: NDArray[np.float32]) -> None:
        self.spec, self._content, self._numbers, self._n = spec, content, numbers, len(content)

    @classmethod
    def of(cls, spec: FeatureSpec, catalogue: Catalogue) -> "ItemFeatures":
        """The arrays of a catalogue's items."""
        wanted = [*(column.name for column in spec.terms), *(column.name for column in spec.numbers)]
        held = [name for name in dict.fromkeys(wanted) if name in catalogue.columns.column_names]
        rows = catalogue.columns.select(held).to_pylist() if held else [{}] * len(catalogue)
        return cls(spec, spec.content(rows), spec.standardised(rows))

    def __len__(self) -> int:
        return self._n

    @property
    def content(self) -> NDArray[np.float32]:
        return self._content[: self._n]

    @property
    def numbers(self) -> NDArray[np.float32]:
        return self._numbers[: self._n]

    def copy(self) -> "ItemFeatures":
        """An independent copy, for a replica that will put items of its own."""
        return ItemFeatures(self.spec, self.content.copy(), self.numbers.copy())

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

    def _reserve(self, n: int) -> None:
        if n > len(self._content):
            more = max(n, len(self._content) + len(self._content) // 4 + 64) - len(self._content)
            self._content = np.concatenate([self._content, np.zeros((more, self._content.shape[1]), np.float32)])
            self._numbers = np.concatenate([self._numbers, np.zeros((more, self._numbers.shape[1]), np.float32)])
        self._n = max(self._n, n)
