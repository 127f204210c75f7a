"""The Protocol of a ranker: features of R candidates in, R scores out; how objectives become one score."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from app.ranking.examples import NEXT, Examples

Weights = Mapping[str, float]
LEAST_CASES = 10  # answered cases without which there is nothing to learn


class Ranker(Protocol):
    """Scores candidates; a higher score ranks earlier. Knows nothing of users or items, only of features.

    Attributes:
        objectives: what it predicts of a shown item: the next event, or a click, a like, a purchase.
    """

    kind: ClassVar[str]
    feature_names: tuple[str, ...]
    objectives: tuple[str, ...]

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) in the order of `feature_names` -> float32 (R,), finite: of NEXT, else of all objectives."""
        ...

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) -> float32 (R, O) in [0, 1]: of each objective, were the item shown in the first place."""
        ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...


class TrainableRanker(Ranker, Protocol):
    """A ranker that learns from examples."""

    def fit(self, examples: Examples, *, seed: int = 0) -> "TrainingReport":
        """Learns from the older cases; the newest share of them stops it and calibrates it.

        The same (params, examples, seed) gives the same ranker.

        Raises:
            ValueError: fewer than LEAST_CASES answered cases.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a fit did: the held-out measure by pass, and of what was kept ndcg_at_10 among candidates.

    Attributes:
        losses: per pass (epoch, tree), the held-out loss; smaller is better.
        best: the pass that was kept, from 1.
        held_out_ndcg_at_10: of the first objective, over the held-out answered cases.
        calibration_error: of each objective on the held-out cases (on which it was calibrated).
        cases: answered cases learned from and held out.
    """

    losses: list[float]
    best: int
    held_out_ndcg_at_10: float
    calibration_error: dict[str, float]
    cases: int


def plain_score(values: NDArray[np.float32], objectives: tuple[str, ...]) -> NDArray[np.float32]:
    """float32 (R, O) -> float32 (R,): what nobody has weighed: NEXT where it is among them, else the sum."""
    if NEXT in objectives:
        return values[:, objectives.index(NEXT)].copy()
    total = values[:, 0].copy()
    for column in values.T[1:]:
        total += column
    return total


def weighted_score(ranker: Ranker, features: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
    """float32 (R,): the sum of weight × probability over the objectives that a surface weighs.

    Of weights that name none of the ranker's objectives, `ranker.score`.
    """
    wanted = np.array([weights.get(name, 0.0) for name in ranker.objectives], np.float32)
    if not wanted.any():
        return ranker.score(features)
    # Column by column: a matrix-vector product would sum a row otherwise alone than in a batch.
    columns = ranker.probabilities(features).T
    total = np.zeros(len(features), np.float32)
    for weight, column in zip(wanted, columns, strict=True):
        total += weight * column
    return total


def checked(features: NDArray[np.float32], names: tuple[str, ...]) -> None:
    """Raises ValueError: the features are not those that a ranker wants."""
    if features.ndim != 2 or features.shape[1] != len(names):
        raise ValueError(f"features: found shape {features.shape}, wanted (R, {len(names)})")
