"""What the families have in common whose fit ends in a table of neighbours."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app.models.history_decay import HistoryDecay, decayed_weights
from app.models.interactions import Histories
from app.models.neighbour_table import NeighbourTable
from app.models.storage import checked, load_model_files, save_model


class NeighbourFamily:
    """A NeighbourModel but for its fit, which sets `_table` and `n_items`."""

    family: ClassVar[str]
    iterative: ClassVar[bool] = False
    params_type: ClassVar[type[HistoryDecay]]
    params: HistoryDecay

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, self.params_type)
        self.n_items = 0
        self._table = NeighbourTable(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))

    def neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        return self._table.indptr, self._table.indices, self._table.data

    def entry_weights(self, histories: Histories) -> NDArray[np.float32]:
        return decayed_weights(histories, self.params, self.n_items)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self._table.score(histories, self.entry_weights(histories))

    def save(self, folder: Path) -> None:
        save_model(folder, self.family, self.params, self._table.arrays(), {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, cls.params_type)
        model = cls(params)
        model._table = NeighbourTable(arrays["indptr"], arrays["indices"], arrays["data"])
        model.n_items = model._table.n_items
        return model
