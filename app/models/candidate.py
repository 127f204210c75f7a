"""The Protocol of a candidate family: fitted on interactions, answers histories, saved as inert files.

A family is one of these servable kinds, which decides how retrieval serves it:
`VectorModel` (FAISS over item vectors), `NeighbourModel` (sums of neighbour rows), `StaticModel` (one list); a model
that is both of the first two, a `SumModel`, scores by the sum of both. A `WholeModel` has none of these forms and is
asked for the scores of all items.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app.models.interactions import Catalogue, Histories, Interactions

# Called after each pass of an iterative family with (pass from 1, the model as it stands): may raise StopFitting.
Progress = Callable[[int, "CandidateModel"], None]


class StopFitting(Exception):
    """Raised by a progress callback: the scheduler has stopped this trial; keep the model as it is."""


@runtime_checkable
class CandidateModel(Protocol):
    """One candidate family with its parameters."""

    family: ClassVar[str]
    iterative: ClassVar[bool]  # whether `fit` calls progress after every pass
    n_items: int

    def __init__(self, params: BaseModel | None = None) -> None: ...

    @property
    def params(self) -> BaseModel: ...

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits; the same (params, data, seed) gives the same model. Threads: what the caller's pools are capped to."""
        ...

    def score(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, n_items), finite; an empty history gives what the family knows without one (often zeros)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes safetensors and JSON into an existing empty folder."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; runs no code from it."""
        ...


@runtime_checkable
class VectorModel(CandidateModel, Protocol):
    """score(h) = encode(h) @ item_vectors().T"""

    def item_vectors(self) -> NDArray[np.float32]:
        """float32 (n_items, d)."""
        ...

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d); zeros for a history without a known item."""
        ...


@runtime_checkable
class NeighbourModel(CandidateModel, Protocol):
    """score(h) = sum over the history of entry weight * row of the item-item matrix (CSR)."""

    def neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """CSR (indptr (n_items + 1,), indices, data): row i lists what item i speaks for, strongest first."""
        ...

    def entry_weights(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (N,): the weight of each history entry (decay by place or age applied)."""
        ...


@runtime_checkable
class SumModel(VectorModel, NeighbourModel, Protocol):
    """score(h) = encode(h) @ item_vectors().T + sum over the history of entry weight * row of the item-item matrix."""


@runtime_checkable
class StaticModel(CandidateModel, Protocol):
    """The same scores for everybody."""

    def item_scores(self) -> NDArray[np.float32]:
        """float32 (n_items,), >= 0."""
        ...


@runtime_checkable
class WholeModel(CandidateModel, Protocol):
    """Nothing of it can be indexed: retrieval takes the best of `score`."""

    scores_all_items: ClassVar[bool]  # true
