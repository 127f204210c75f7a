"""Ranking metrics from the places of held-out items, vectorised over cases; each name says its definition.

A case is one list judged: `ranks` holds the place (from 1) of every held-out item of every case in its full ranking,
infinite for one that can never be shown; `offsets` says which belong to which case. All results are float64 (C,).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.float64]
Offsets = NDArray[np.int64]
PerCase = NDArray[np.float64]


def recall_at(ranks: Ranks, offsets: Offsets, k: int) -> PerCase:
    """Hits in the first k, divided by the held-out items of the case (the LightGCN literature's recall)."""
    return _per_case(ranks <= k, offsets) * (1.0 / np.maximum(np.diff(offsets), 1))


def capped_recall_at(ranks: Ranks, offsets: Offsets, k: int) -> PerCase:
    """Hits in the first k, divided by min(k, held out) (the Mult-VAE literature's recall)."""
    found: PerCase = _per_case(ranks <= k, offsets) / np.clip(np.diff(offsets), 1, k)
    return found


def hit_rate_at(ranks: Ranks, offsets: Offsets, k: int) -> PerCase:
    """1 when at least one held-out item is in the first k."""
    return np.where(_per_case(ranks <= k, offsets) > 0, 1.0, 0.0)


def ndcg_at(ranks: Ranks, offsets: Offsets, k: int) -> PerCase:
    """Sum of 1 / log2(1 + rank) over hits in the first k, divided by that of the best list: min(k, held out) hits."""
    gains = np.where(ranks <= k, 1.0 / np.log2(1.0 + np.minimum(ranks, k)), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    best: PerCase = ideal[np.clip(np.diff(offsets), 1, k)]
    return _per_case(gains, offsets) / best


def mrr_at(ranks: Ranks, offsets: Offsets, k: int) -> PerCase:
    """1 / rank of the first hit in the first k, else 0."""
    first = np.full(len(offsets) - 1, np.inf)
    np.minimum.at(first, np.repeat(np.arange(len(first)), np.diff(offsets)), ranks)
    return np.where(first <= k, 1.0 / first, 0.0)


METRICS: dict[str, Callable[[Ranks, Offsets, int], PerCase]] = {
    "recall": recall_at,
    "capped_recall": capped_recall_at,
    "hit_rate": hit_rate_at,
    "ndcg": ndcg_at,
    "mrr": mrr_at,
}


def per_case(ranks: Ranks, offsets: Offsets, ks: Sequence[int]) -> dict[str, PerCase]:
    """Every metric at every k, named `recall_at_20` and so on: float64 (C,) each."""
    return {f"{name}_at_{k}": metric(ranks, offsets, k) for name, metric in METRICS.items() for k in ks}


def bootstrap_intervals(
    values: Mapping[str, PerCase], groups: NDArray[np.integer], *, seed: int = 0, samples: int = 1000
) -> dict[str, tuple[float, float]]:
    """95 % intervals of means (or of paired differences) by bootstrap over groups (users), of the same draws for all.

    Args:
        values: name to float64 (C,), one value a case.
        groups: int (C,), the user of each case; a user's cases are drawn together.
        seed: of the draws.
        samples: bootstrap samples.
    """
    _, owner = np.unique(groups, return_inverse=True)
    counts = np.bincount(owner)
    if len(counts) == 0:
        return dict.fromkeys(values, (0.0, 0.0))
    sums = np.stack([np.bincount(owner, one) for one in values.values()])
    rng = np.random.default_rng(seed)
    means = np.empty((samples, len(sums)))
    for sample in range(samples):
        drawn = np.bincount(rng.integers(0, len(counts), len(counts)), minlength=len(counts))
        means[sample] = sums @ drawn / (counts @ drawn)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {name: (float(low[place]), float(high[place])) for place, name in enumerate(values)}


def bootstrap_interval(
    values: PerCase, groups: NDArray[np.integer], *, seed: int = 0, samples: int = 1000
) -> tuple[float, float]:
    """`bootstrap_intervals` of one metric."""
    return bootstrap_intervals({"": values}, groups, seed=seed, samples=samples)[""]


def _per_case(values: NDArray[np.bool_] | NDArray[np.float64], offsets: Offsets) -> PerCase:
    total = np.concatenate([[0.0], np.cumsum(values.astype(np.float64))])
    sums: PerCase = total[offsets[1:]] - total[offsets[:-1]]
    return sums
