"""iALS: matrix factorisation for implicit feedback; `implicit` fits the items, a history is folded in here."""

import itertools
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from app.models.candidate import Progress, StopFitting
from app.models.history_decay import HistoryDecay, decayed_weights
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.storage import checked, load_model_files, save_model

CELLS = 16_000_000  # factors × factors of all histories held at once while folding in (64 MB)


class IalsParams(HistoryDecay):
    """Parameters of `ials`."""

    n_factors: int = Field(64, ge=2, le=1024, description="Dimensions of the item vectors.")
    l2: float = Field(10.0, gt=0, description="Regularisation of users and items.")
    alpha: float = Field(2.0, gt=0, description="Confidence of an event of weight 1 is 1 + alpha.")
    iterations: int = Field(10, ge=1, le=200, description="Passes of alternating least squares.")


class Ials:
    """Items and users as vectors; the user's is the closed form of the history alone, so that new users are served.

    Minimises sum c_ui (p_ui - x_u y_i)^2 + l2 (|X|^2 + |Y|^2) with c = 1 + alpha × weight where there was an event,
    1 elsewhere. At answer time: x = (Y'Y + l2 I + sum alpha w y y')^-1 sum (1 + alpha) w y over the decayed history.
    Searched: n_factors 32-96; l2 1-100, log; alpha 0.5-20, log; place_tau 3-30, log; place_floor 0-0.2.
    Papers: Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008; Rendle et al.,
    "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022.
    """

    family: ClassVar[str] = "ials"
    iterative: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, IalsParams)
        self.n_items = 0
        self._set_vectors(np.zeros((0, 1), np.float32))

    def _set_vectors(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        dims = vectors.shape[1]
        self._gram = vectors.T @ vectors + np.float32(self.params.l2) * np.eye(dims, dtype=np.float32)
        # One row more, of zeros: where padding and unknown items point to.
        self._padded = np.concatenate([vectors, np.zeros((1, dims), np.float32)])

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        del catalogue
        self.n_items = data.n_items
        seen = csr_matrix((data.weights, (data.users, data.items)), shape=(data.n_users, data.n_items))
        seen.data = (1.0 + self.params.alpha * seen.data).astype(np.float32)

        # implicit has threads of its own and is far slower when BLAS brings more.
        with threadpool_limits(1, user_api="blas"):
            solver = AlternatingLeastSquares(
                factors=self.params.n_factors,
                regularization=self.params.l2,
                alpha=1.0,
                iterations=self.params.iterations,
                random_state=seed,
            )

            def passed(iteration: int, _seconds: float, _loss: float | None) -> None:
                if progress is not None:
                    self._set_vectors(solver.item_factors.copy())
                    progress(iteration + 1, self)

            with suppress(StopFitting):
                solver.fit(seen, show_progress=False, callback=passed)
        self._set_vectors(solver.item_factors)
        return self

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d): the users' vectors given the items', in closed form; zeros for an empty history."""
        weights = decayed_weights(histories, self.params, self.n_items)
        vectors = np.zeros((len(histories), self._vectors.shape[1]), np.float32)
        step = max(1, CELLS // vectors.shape[1] ** 2)
        for start in range(0, len(histories), step):
            end = min(start + step, len(histories))
            own = weights[histories.offsets[start] : histories.offsets[end]]
            vectors[start:end] = self._fold_in(histories.slice(start, end), own)
        return vectors

    def _fold_in(self, histories: Histories, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        width = self._vectors.shape[1]
        left = np.empty((len(histories), width, width), np.float32)
        right = np.empty((len(histories), width, 1), np.float32)
        rows = np.minimum(histories.items, self.n_items)
        # One history at a time: padded to the longest of a batch, its sums would depend on the batch.
        for place, (start, end) in enumerate(itertools.pairwise(histories.offsets.tolist())):
            items, own = self._padded[rows[start:end]], weights[start:end, None]
            left[place] = (items * (np.float32(self.params.alpha) * own)).T @ items
            right[place] = items.T @ (np.float32(1 + self.params.alpha) * own)
        return np.linalg.solve(self._gram + left, right)[:, :, 0].astype(np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self.encode(histories) @ self._vectors.T

    def save(self, folder: Path) -> None:
        save_model(folder, self.family, self.params, {"vectors": self._vectors}, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, IalsParams)
        model = cls(params)
        model._set_vectors(arrays["vectors"])
        model.n_items = len(arrays["vectors"])
        return model
