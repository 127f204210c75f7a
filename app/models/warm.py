"""Fits that begin where a model of the same family ended: a family that can is a `WarmModel`."""

import math
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.errors import MantaError
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue

SHARE = 0.4  # of its passes that a fit needs which begins warm


@runtime_checkable
class WarmModel(CandidateModel, Protocol):
    """Can begin where another of its family ended."""

    def begin_at(self, before: Self, rows: NDArray[np.int64]) -> Self:
        """The next `fit` begins with what `before` knows, and takes `passes_of` its passes.

        Args:
            before: a fitted model, which stays as it is.
            rows: int64 (n_items,), of each item to fit on its row in `before`; -1: it is new.

        Raises:
            MantaError: the two have different sizes.
        """
        ...


def passes_of(iterations: int) -> int:
    """The passes of a warm fit in the place of `iterations` from nothing."""
    return max(1, math.ceil(SHARE * iterations))


def rows_before(before: Catalogue, now: Catalogue) -> NDArray[np.int64]:
    """int64 (len(now),): each item's row in the catalogue before; -1: it is new."""
    return np.fromiter((before.row_of.get(item, -1) for item in now.item_ids), np.int64, len(now))


def begun_at(vectors: NDArray[np.float32], rows: NDArray[np.int64], fresh: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (n_items, d): rows of `vectors` where there is one, else of `fresh`."""
    found = fresh.copy()
    found[rows >= 0] = vectors[rows[rows >= 0]]
    return found


def same_sizes(family: str, before: dict[str, object], now: dict[str, object]) -> None:
    """Raises MantaError where two models differ in a size."""
    other = {name: (before[name], now[name]) for name in now if before[name] != now[name]}
    if other:
        name, (found, wanted) = next(iter(other.items()))
        raise MantaError(f"{family}: found a model of {name} = {found} to begin at, wanted {name} = {wanted}")
