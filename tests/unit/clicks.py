"""Simulated logs: lists shown by an old order, clicks that depend on where an item stood."""

import numpy as np
from numpy.typing import NDArray

from app.ranking.examples import Examples

SHOWN = 8
NAMES = ("relevance", "old_score", "noise")


def seen(positions: NDArray[np.int32]) -> NDArray[np.float64]:
    """The probability that the item at a position is looked at: 1, 1/2, 1/3 ..."""
    return np.asarray(1.0 / np.maximum(positions, 1))


def relevance(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probability that an item is clicked once it is looked at; rises with the first feature alone."""
    return np.asarray(0.02 + 0.6 / (1.0 + np.exp(-2.0 * features[:, 0].astype(np.float64))))


def clicks(lists: int, seed: int) -> Examples:
    """Lists of SHOWN items ordered by the second feature and chance; objectives click, and purchase on the third."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(lists * SHOWN, 3)).astype(np.float32)
    order = features[:, 1] + random.normal(scale=0.5, size=len(features))
    owner = np.repeat(np.arange(lists), SHOWN)
    features = features[np.lexsort((-order, owner))]
    positions = np.tile(np.arange(1, SHOWN + 1, dtype=np.int32), lists)
    click = random.random(len(features)) < seen(positions) * relevance(features)
    purchase = random.random(len(features)) < 0.3 / (1.0 + np.exp(-3.0 * features[:, 2]))
    labels = np.stack([click, purchase], axis=1).astype(np.float32)
    return Examples(features, np.arange(lists + 1) * SHOWN, labels, ("click", "purchase"), positions)
