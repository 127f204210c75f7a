"""iALS: matrix factorisation for implicit feedback; a history is folded in at request time."""

import itertools
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.sparse import csr_matrix

from app.errors import MantaError
from app.models import warm
from app.models.candidate import Progress, StopFitting
from app.models.history_decay import HistoryDecay, decayed_weights
from app.models.ials_solver import alternate
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.kinds import kind_of
from app.models.storage import checked, load_model_files, save_model

CELLS = 16_000_000  # factors × factors of all histories held at once while folding in (64 MB)
# What is not asked of sets, whose order says nothing.
OF_SETS: dict[str, Any] = {"place_tau": 0.0, "alpha": 50.0, "l2": 100.0, "frequency": 0.5, "iterations": 5}


class IalsParams(HistoryDecay):
    """Parameters of `ials`. Those not named suit the data: of users whose events have no order they are others."""

    n_factors: int = Field(64, ge=2, le=1024, description="Dimensions of the item vectors.")
    l2: float = Field(10.0, gt=0, description="Regularisation of users and items; of sets 100.")
    alpha: float = Field(2.0, gt=0, description="Confidence of an event of weight 1 is 1 + alpha; of sets 50.")
    frequency: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Exponent by which regularisation grows with the events of a user or an item; of sets 0.5.",
    )
    iterations: int = Field(10, ge=1, le=200, description="Passes of alternating least squares; of sets 5.")


class Ials:
    """Items and users as vectors; the user's is the closed form of the history alone, so that new users are served.

    Minimises sum c_ui (p_ui - x_u y_i)^2 + sum l2_u |x_u|^2 + sum l2_i |y_i|^2 with c = 1 + alpha × weight where there
    was an event, 1 elsewhere; l2_u = l2 × (m_u / mean of all m)^frequency, m_u = alpha × the user's weights + n_items,
    and the items' likewise. At answer time: x = (Y'Y + l2_u I + sum alpha w y y')^-1 sum (1 + alpha) w y over the
    decayed history.
    Searched: n_factors 32-96; l2 1-100, log; alpha 0.5-20, log; place_tau 3-30, log; place_floor 0-0.2.
    Papers: Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008; Rendle et al.,
    "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022 (`frequency` is its nu).
    """

    family: ClassVar[str] = "ials"
    iterative: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, IalsParams)
        self.n_items = 0
        self._mean_mass = 1.0
        self._begin: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
        self._set_vectors(np.zeros((0, 1), np.float32))

    def _set_vectors(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        dims = vectors.shape[1]
        self._gram = vectors.T @ vectors
        # One row more, of zeros: where padding and unknown items point to.
        self._padded = np.concatenate([vectors, np.zeros((1, dims), np.float32)])

    def begin_at(self, before: Self, rows: NDArray[np.int64]) -> Self:
        """As `app.models.warm.WarmModel` has it: at the items' vectors."""
        warm.same_sizes(self.family, {"n_factors": before.params.n_factors}, {"n_factors": self.params.n_factors})
        self._begin = partial(warm.begun_at, before.item_vectors(), rows)
        return self

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        del catalogue
        self.n_items = data.n_items
        if kind_of(data) == "sets":
            unasked = {name: value for name, value in OF_SETS.items() if name not in self.params.model_fields_set}
            self.params = self.params.model_copy(update=unasked)
        params = self.params
        seen = csr_matrix((data.weights, (data.users, data.items)), shape=(data.n_users, data.n_items))
        seen.data = (params.alpha * seen.data).astype(np.float32)
        users = np.asarray(seen.sum(axis=1), np.float64).ravel() + data.n_items
        items = np.asarray(seen.sum(axis=0), np.float64).ravel() + data.n_users
        self._mean_mass = float(users.mean()) if len(users) else 1.0
        seen.data += np.float32(1)
        l2_items = params.l2 * (items / items.mean()) ** params.frequency if len(items) else items
        begin, self._begin = self._begin, None
        passes = alternate(seen, self._l2(users), l2_items, params.n_factors, seed, begin)
        most = warm.passes_of(params.iterations) if begin else params.iterations
        with suppress(StopFitting):
            for number, vectors in enumerate(itertools.islice(passes, most), start=1):
                if not np.isfinite(vectors).all():
                    raise MantaError(f"ials: found vectors that are not finite after pass {number}; wanted a larger l2")
                self._set_vectors(vectors)
                if progress is not None:
                    progress(number, self)
        return self

    def _l2(self, mass: NDArray[np.float64]) -> NDArray[np.float64]:
        """The regularisation of users by their m_u."""
        found: NDArray[np.float64] = self.params.l2 * (mass / self._mean_mass) ** self.params.frequency
        return found

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
        mass = np.empty(len(histories))
        rows = np.minimum(histories.items, self.n_items)
        # One history at a time: padded to the longest of a batch, its sums would depend on the batch.
        for place, (start, end) in enumerate(itertools.pairwise(histories.offsets.tolist())):
            items, own = self._padded[rows[start:end]], weights[start:end, None]
            left[place] = (items * (np.float32(self.params.alpha) * own)).T @ items
            right[place] = items.T @ (np.float32(1 + self.params.alpha) * own)
            mass[place] = own.sum()
        l2 = self._l2(self.params.alpha * mass + self.n_items).astype(np.float32)
        left += self._gram
        left[:, range(width), range(width)] += l2[:, None]
        return np.linalg.solve(left, right)[:, :, 0].astype(np.float32)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self.encode(histories) @ self._vectors.T

    def save(self, folder: Path) -> None:
        save_model(folder, self.family, self.params, {"vectors": self._vectors}, {"mean_mass": self._mean_mass})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, facts = load_model_files(folder, cls.family, IalsParams)
        model = cls(params)
        model._mean_mass = float(facts.get("mean_mass", 1.0))  # none where it was written without `frequency`
        model._set_vectors(arrays["vectors"])
        model.n_items = len(arrays["vectors"])
        return model
