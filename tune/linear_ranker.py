"""The cheapest ranker that there is: linear in the features, convex, so that mixes are compared without luck."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.ranking.examples import Examples

CANDIDATES = 48  # of a case that it learns from: drawn once by the seed, what was answered always among them
CLIP = 8.0  # standard deviations: what an outlier may count
L2 = 10.0  # in cases: what a unit of squared weight costs
STEPS = 12  # of Newton's method at most; five or six are enough as a rule
ENOUGH = 1e-6  # improvement of the mean loss below which it has converged


@dataclass(frozen=True, slots=True)
class LinearRanker:
    """score = standardised features × weights: the conditional logit of McFadden (1974).

    Stands in for the ranker that will be trained while mixes are compared; goes into no bundle.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: NDArray[np.float64]

    @classmethod
    def fitted(cls, examples: Examples, seed: int) -> "LinearRanker":
        """Maximises the penalised likelihood of the answered rows of the first objective among their cases' rows."""
        thin = examples.answered().thinned(CANDIDATES, np.random.default_rng(seed))
        thin = thin.take(np.flatnonzero(thin.targets >= 0))
        if not len(thin):
            width = examples.features.shape[1]
            return cls(np.zeros(width, np.float32), np.zeros(width, np.float32), np.zeros(width))
        deviation = thin.features.std(axis=0)
        scale = np.where(deviation > 1e-6, 1.0 / np.maximum(deviation, 1e-6), 0.0).astype(np.float32)
        begun = cls(thin.features.mean(axis=0), scale, np.zeros(len(scale)))
        return cls(begun.mean, scale, _newton(begun.standard(thin.features), thin))

    def standard(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64 (R, F)."""
        standard: NDArray[np.float64] = np.clip((features - self.mean) * self.scale, -CLIP, CLIP).astype(np.float64)
        return standard

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) -> float32 (R,)."""
        scores: NDArray[np.float32] = (self.standard(features) @ self.weights).astype(np.float32)
        return scores


def _newton(values: NDArray[np.float64], examples: Examples) -> NDArray[np.float64]:
    owner, starts, cases = examples.owner, examples.offsets[:-1], len(examples)
    answered = examples.offsets[:-1] + examples.targets
    weights = np.zeros(values.shape[1])

    def at(tried: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The loss, and the probability of each row within its case."""
        scores = values @ tried
        shifted = np.exp(scores - np.maximum.reduceat(scores, starts)[owner])
        chances = shifted / np.add.reduceat(shifted, starts)[owner]
        return float(-np.log(np.maximum(chances[answered], 1e-300)).sum() + 0.5 * L2 * tried @ tried), chances

    loss, chances = at(weights)
    for _ in range(STEPS):
        weighted = values * chances[:, None]
        means = np.add.reduceat(weighted, starts, axis=0)
        slope = means.sum(axis=0) - values[answered].sum(axis=0) + L2 * weights
        curvature = values.T @ weighted - means.T @ means + L2 * np.eye(len(weights))
        step, share = np.linalg.solve(curvature, slope), 1.0
        after, chances = at(weights - step)
        while after > loss and share > 1e-4:
            share /= 2
            after, chances = at(weights - share * step)
        if after > loss:
            break
        weights, gained, loss = weights - share * step, loss - after, after
        if gained < ENOUGH * cases:
            break
    return weights
