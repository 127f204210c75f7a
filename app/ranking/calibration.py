"""From a score to the probability that the row is answered: isotonic regression and Platt's sigmoid, on held-out rows.

Both rise, and their mixture rises strictly, so that calibrated scores order candidates as the scores do.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import isotonic_regression

SIGMOID_SHARE = 0.02  # of the mixture, where there are steps: what keeps two scores of one step apart
BINS = 40  # of the held-out rows at most, by score
LEAST_ANSWERED = 100  # rows answered, below which steps would follow chance: the sigmoid alone
LARGEST = 80.0  # of what the sigmoid is taken of, in float32
LEAST_SLOPE = 1e-3  # a score that says nothing, or the contrary, must not turn the order round


class Calibration(BaseModel):
    """P(answered | score) = share * sigmoid(slope * (score - centre) + intercept) + (1 - share) * steps(score).

    Attributes:
        scores, shares: knots of the steps, both rising, linear between them; none: the sigmoid is all (share 1).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: float = Field(gt=0)
    intercept: float
    centre: float = 0.0
    scores: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    @cached_property
    def _knots(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.scores), (1 - SIGMOID_SHARE) * np.array(self.shares)

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R,) scores -> float32 (R,) probabilities in [0, 1], in the same order."""
        found = scores - np.float32(self.centre)
        found *= np.float32(-self.slope)
        found -= np.float32(self.intercept)
        np.clip(found, -LARGEST, LARGEST, out=found)
        np.exp(found, out=found)
        found += 1
        np.reciprocal(found, out=found)
        if self.scores:
            found *= np.float32(SIGMOID_SHARE)
            found += np.interp(scores, *self._knots).astype(np.float32)
        return found

    @classmethod
    def fit(cls, scores: NDArray[np.float32], labels: NDArray[np.float32]) -> "Calibration":
        """By held-out rows: float32 (N,) scores and labels 0 or 1."""
        slope, intercept, centre = _platt(scores.astype(np.float64), labels.astype(np.float64))
        if labels.sum() < LEAST_ANSWERED:
            return cls(slope=slope, intercept=intercept, centre=centre)
        middles, shares = _steps(scores.astype(np.float64), labels.astype(np.float64))
        knots = {"scores": tuple(middles.tolist()), "shares": tuple(shares.tolist())}
        return cls(slope=slope, intercept=intercept, centre=centre, **knots)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted against observed, by bins of equal size.

    Attributes:
        predicted, observed: float64 (bins,), mean probability and share of answered rows.
        error: the expected calibration error: mean distance of both over the rows (Naeini et al., AAAI 2015).
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    error: float


def reliability(probabilities: NDArray[np.float32], labels: NDArray[np.float32], bins: int = 15) -> Reliability:
    """Of N > 0 rows, sorted by probability and cut into `bins` of as many rows each."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    predicted = np.array([probabilities[part].mean(dtype=np.float64) for part in parts])
    observed = np.array([labels[part].mean(dtype=np.float64) for part in parts])
    sizes = np.array([len(part) for part in parts])
    return Reliability(predicted, observed, float(np.average(np.abs(predicted - observed), weights=sizes)))


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(values, -700.0, 700.0)))
    return found


def _platt(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, intercept and centre of logistic regression on the score alone, by Newton's steps.

    Targets are smoothed as by Platt (1999), so that separable rows have finite answers.
    """
    answered = float(labels.sum())
    high, low = (answered + 1) / (answered + 2), 1 / (len(labels) - answered + 2)
    targets = np.where(labels > 0, high, low)
    centre, scale = float(scores.mean()), max(float(scores.std()), 1e-9)
    x = np.stack([(scores - centre) / scale, np.ones_like(scores)])
    weights = np.array([0.0, np.log((answered + 1) / (len(labels) - answered + 1))])
    loss = _loss(weights, x, targets)
    for _ in range(100):
        p = _sigmoid(weights @ x)
        curvature = (x * (p * (1 - p))) @ x.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, x @ (p - targets))
        while (found := _loss(weights - step, x, targets)) > loss and np.abs(step).max() > 1e-9:
            step /= 2
        if found > loss or np.abs(step).max() < 1e-8:
            break
        weights, loss = weights - step, found
    return max(float(weights[0]), LEAST_SLOPE) / scale, float(weights[1]), centre


def _loss(weights: NDArray[np.float64], x: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    logits = weights @ x
    return float((np.logaddexp(0.0, logits) - targets * logits).sum())


def _steps(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots (mean score, share answered): bins that hold as much of the rows and of the answered ones, made to rise."""
    order = np.argsort(scores, kind="stable")
    scores, labels = scores[order], labels[order]
    mass = np.cumsum(labels / labels.sum() + 1.0 / len(labels)) / 2
    bins = np.minimum((mass * BINS).astype(np.int64), BINS - 1)
    same = np.searchsorted(scores, scores)  # equal scores lie in one bin: that of the first
    bins = bins[same]
    _, numbers = np.unique(bins, return_inverse=True)
    rows = np.bincount(numbers)
    middles = np.bincount(numbers, scores) / rows
    shares = isotonic_regression(np.bincount(numbers, labels) / rows, weights=rows).x
    return middles, np.asarray(shares, np.float64)
