"""What the families share that know items by their columns alone: vectors of items, histories as their mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from app.models.candidate import Progress
from app.models.column_encoders import ColumnEncoder, Vectors, encoder_of_saved
from app.models.history_decay import HistoryDecay, decayed_weights, history_matrix
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.storage import checked, load_model_files, save_model
from app.models.vectors import unit_length


class ColumnModel:
    """Cosine between an item and the decayed mean of the history's items, over blocks that columns become."""

    family: ClassVar[str]
    iterative: ClassVar[bool] = False
    kind_of_params: ClassVar[type[HistoryDecay]]

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params: HistoryDecay = checked(params, self.kind_of_params)
        self.n_items = 0
        self._encoders: tuple[ColumnEncoder, ...] = ()
        self._vectors = np.zeros((0, 1), np.float32)

    def made_encoders(self, catalogue: Catalogue, seed: int) -> Sequence[ColumnEncoder]:
        """The encoders of the columns that the family looks at, fitted."""
        raise NotImplementedError

    def weight_of(self, encoder: ColumnEncoder) -> float:
        """How much a block counts; its rows have length 1."""
        raise NotImplementedError

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits on the catalogue's columns; the events are not looked at."""
        del progress
        self.n_items = data.n_items
        self._encoders = tuple(self.made_encoders(catalogue, seed))
        columns = {name: catalogue.columns.column(name)[: data.n_items] for name in catalogue.columns.column_names}
        self._vectors = self._encoded(columns, data.n_items)
        return self

    def encode_items(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Vectors of any items, also such as were not there at fitting.

        Args:
            rows: one mapping of columns an item; unknown columns and values of another type are ignored.

        Returns:
            float32 (n, d), of unit length, or zeros for an item about which nothing is known.
        """
        return self._encoded({e.column: [row.get(e.column) for row in rows] for e in self._encoders}, len(rows))

    def _encoded(self, columns: Mapping[str, Sequence[Any] | pa.ChunkedArray], n: int) -> NDArray[np.float32]:
        blocks = [np.zeros((n, 0 if self._encoders else 1), np.float32)]
        for encoder in self._encoders:
            values = columns[encoder.column]
            if isinstance(values, pa.ChunkedArray) and not isinstance(encoder, Vectors):
                values = values.to_pylist()
            blocks.append(encoder.encode(values) * np.float32(self.weight_of(encoder)))
        return unit_length(np.concatenate(blocks, axis=1))

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d), of unit length; zeros for a history without a known item."""
        weights = decayed_weights(histories, self.params, self.n_items)
        return unit_length(np.asarray(history_matrix(histories, weights, self.n_items) @ self._vectors, np.float32))

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self.encode(histories) @ self._vectors.T

    def save(self, folder: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {"vectors": self._vectors}
        for place, encoder in enumerate(self._encoders):
            arrays |= {f"{place}.{name}": array for name, array in encoder.arrays().items()}
        facts = {"encoders": [encoder.facts() for encoder in self._encoders]}
        save_model(folder, self.family, self.params, arrays, facts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, facts = load_model_files(folder, cls.family, cls.kind_of_params)
        model = cls(params)
        model._vectors = arrays["vectors"]
        model.n_items = len(model._vectors)
        model._encoders = tuple(
            encoder_of_saved(saved, {key.partition(".")[2]: a for key, a in arrays.items() if key.startswith(f"{n}.")})
            for n, saved in enumerate(facts["encoders"])
        )
        return model
