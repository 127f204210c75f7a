"""Popularity: how often an item was chosen, recent choices counting more."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from app.models.candidate import Progress
from app.models.history_decay import DAY_MS
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.storage import FamilyParams, checked, load_model_files, save_model


class PopularityParams(FamilyParams):
    """Parameters of `popularity`."""

    half_life_days: float = Field(
        0.0, ge=0, description="An event this much older than the last one counts half; 0: all-time counts."
    )


class Popularity:
    """Decayed counts: sum over the item's events of weight × 2^(-age / half_life_days), scaled to a maximum of 1.

    Searched: half_life_days 1 to 3650, log. Age counts from the last fitted event, so that old data serves as well.
    Paper: Ji et al., "A Re-visit of the Popularity Baseline in Recommender Systems", SIGIR 2020.
    """

    family: ClassVar[str] = "popularity"
    iterative: ClassVar[bool] = False

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, PopularityParams)
        self.n_items = 0
        self._scores = np.zeros(0, np.float32)

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        del catalogue, seed, progress
        weights = data.weights.astype(np.float64)
        if self.params.half_life_days > 0:
            weights *= np.exp2((data.times - data.end) / (self.params.half_life_days * DAY_MS))
        counts = np.bincount(data.items, weights, minlength=data.n_items)
        self.n_items = data.n_items
        self._scores = (counts / max(counts.max(initial=0.0), np.finfo(np.float64).tiny)).astype(np.float32)
        return self

    def item_scores(self) -> NDArray[np.float32]:
        """float32 (n_items,), 0 to 1."""
        return self._scores

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return np.repeat(self._scores[None, :], len(histories), axis=0)

    def save(self, folder: Path) -> None:
        save_model(folder, self.family, self.params, {"scores": self._scores}, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, PopularityParams)
        model = cls(params)
        model._scores = arrays["scores"]
        model.n_items = len(model._scores)
        return model
