"""The newest part of a ranker's examples: it stops the training and calibrates what came of it."""

import numpy as np
from numpy.typing import NDArray

from app.ranking.calibration import Calibration, reliability
from app.ranking.examples import Examples, ndcg_of_targets
from app.ranking.ranker import LEAST_CASES, TrainingReport


def split(examples: Examples, share: float) -> tuple[Examples, Examples, Examples]:
    """(answered cases to learn from, answered held-out cases, all held-out cases); examples oldest first.

    Raises:
        ValueError: fewer than LEAST_CASES answered cases.
    """
    answered = np.unique(examples.owner[examples.labels.any(axis=1)])
    if len(answered) < LEAST_CASES:
        raise ValueError(f"ranker: found {len(answered)} cases with their target retrieved, wanted at least 10")
    cut = len(answered) - max(1, round(len(answered) * share))
    held = examples.slice(int(answered[cut]), len(examples))
    return examples.take(answered[:cut]), held.answered(), held


def calibrated(scores: NDArray[np.float32], held: Examples) -> tuple[tuple[Calibration, ...], dict[str, float]]:
    """A calibration for each objective, and its error: by float32 (R, O) scores of held-out rows where they stood."""
    found = tuple(Calibration.fit(*columns) for columns in zip(scores.T, held.labels.T, strict=True))
    errors = {
        name: reliability(calibration(column), labels).error
        for name, calibration, column, labels in zip(held.objectives, found, scores.T, held.labels.T, strict=True)
    }
    return found, errors


def report_of(
    losses: list[float],
    best: int,
    scores: NDArray[np.float32],
    held: Examples,
    errors: dict[str, float],
    cases: int,
) -> TrainingReport:
    """What a fit says of itself. `best`: from 0; `scores`: float32 (R,) of the answered held-out cases' rows."""
    ndcg = float(ndcg_of_targets(scores, held).mean())
    return TrainingReport(losses, best + 1, ndcg, errors, cases)
