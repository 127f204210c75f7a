"""Content: items by their columns alone, so that an item is found before any event names it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from app.models.candidate import Progress
from app.models.column_encoders import ColumnEncoder, encoder_of, encoder_of_saved, unit_length
from app.models.history_decay import HistoryDecay, decayed_weights, history_matrix
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.storage import checked, load_model_files, save_model


class ContentParams(HistoryDecay):
    """Parameters of `content`."""

    n_factors: int = Field(64, ge=2, le=512, description="Dimensions of a column of words (more distinct words).")
    list_weight: float = Field(1.0, ge=0, description="Weight of columns that are lists of strings (genres).")
    text_weight: float = Field(0.7, ge=0, description="Weight of string columns, word by word (titles).")
    number_weight: float = Field(1.0, ge=0, description="Weight of number columns (year, price).")
    vector_weight: float = Field(1.0, ge=0, description="Weight of columns that are vectors of numbers.")


class ContentModel:
    """Cosine between an item and the decayed mean of the history's items, over idf-weighted columns.

    Each column becomes a block of unit length times its kind's weight: lists of strings and texts are multi-hot with
    idf, reduced to `n_factors` by SVD when they have more words; numbers spread over soft quantile buckets; vectors are
    taken as they are. A missing value is a block of zeros.
    Searched: n_factors 16-128; list_weight, text_weight, number_weight 0-2; place_tau 1-50, log.
    Paper: Lops et al., "Content-based recommender systems", Recommender Systems Handbook, 2011.
    """

    family: ClassVar[str] = "content"
    iterative: ClassVar[bool] = False

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, ContentParams)
        self.n_items = 0
        self._encoders: tuple[ColumnEncoder, ...] = ()
        self._vectors = np.zeros((0, 1), np.float32)

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits on the catalogue's columns; the events are not looked at."""
        del progress
        self.n_items = data.n_items
        encoders = [
            encoder_of(name, catalogue.columns.column(name), self.params.n_factors, seed)
            for name in sorted(catalogue.columns.column_names)
        ]
        self._encoders = tuple(encoder for encoder in encoders if encoder is not None and self._weight(encoder) > 0)
        self._vectors = self.encode_items(catalogue.columns.to_pylist()[: data.n_items])
        return self

    def encode_items(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Vectors of any items, also such as were not there at fitting.

        Args:
            rows: one mapping of columns an item; unknown columns and values of another type are ignored.

        Returns:
            float32 (n, d), of unit length, or zeros for an item about which nothing is known.
        """
        blocks = [
            encoder.encode([row.get(encoder.column) for row in rows]) * self._weight(encoder)
            for encoder in self._encoders
        ]
        vectors = np.concatenate([np.zeros((len(rows), 0 if blocks else 1), np.float32), *blocks], axis=1)
        return unit_length(vectors)

    def _weight(self, encoder: ColumnEncoder) -> np.float32:
        return np.float32(getattr(self.params, f"{encoder.kind}_weight"))

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
        params, arrays, facts = load_model_files(folder, cls.family, ContentParams)
        model = cls(params)
        model._vectors = arrays["vectors"]
        model.n_items = len(model._vectors)
        model._encoders = tuple(
            encoder_of_saved(saved, {key.partition(".")[2]: a for key, a in arrays.items() if key.startswith(f"{n}.")})
            for n, saved in enumerate(facts["encoders"])
        )
        return model
