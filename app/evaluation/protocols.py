"""Evaluation protocols. Each is one named function; what it does is in its docstring, exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.evaluation.metrics import PerCase, Ranks, per_case
from app.models.candidate import CandidateModel
from app.models.interactions import Histories, Interactions

KS = (5, 10, 20, 50)

Scorer = Callable[[Histories], NDArray[np.float32]]  # histories -> float32 (B, n_items)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a protocol found.

    Attributes:
        metrics: means over cases, `ndcg_at_10` and so on.
        per_case: float64 (C,) by metric, in the order of the cases, for intervals and paired differences.
        ranks: float64 (C,), the target's place from 1; infinite for a target that could not be shown.
        users: int32 (C,), the user of each case.
    """

    metrics: dict[str, float]
    per_case: dict[str, PerCase]
    ranks: Ranks
    users: NDArray[np.int32]


def next_event(
    model: CandidateModel | Scorer,
    interactions: Interactions,
    cases: NDArray[np.int64],
    *,
    ks: Sequence[int] = KS,
    mask_history: bool = True,
    history_limit: int = 200,
    batch: int = 256,
    seed: int = 0,
) -> Evaluation:
    """The item of each case's event, predicted from the user's events before it, among the whole catalogue.

    Args:
        model: a fitted family, or any function from histories to float32 (B, n_items). A model that knows fewer items
            than the interactions makes the others unreachable: misses that count.
        interactions: the events; the history of a case is what stands before its very event.
        cases: int64 (C,), positions in `interactions`.
        ks: list lengths.
        mask_history: items of the history (all of it) are not shown; a target among them is a miss that counts.
        history_limit: newest events that the model sees.
        batch: cases scored at once; the result does not depend on it.
        seed: breaks ties at random.
    """
    scorer = model if callable(model) else model.score
    luck = np.random.default_rng(seed).random(len(cases))
    ranks = np.empty(len(cases), np.float64)
    for start in range(0, len(cases), batch):
        some = cases[start : start + batch]
        histories = interactions.histories_before(some)
        scores = scorer(histories.last(history_limit))
        hidden = np.zeros(scores.shape, bool)
        if mask_history:
            known = histories.items < scores.shape[1]
            hidden[histories.owner[known], histories.items[known]] = True
        ranks[start : start + batch] = target_ranks(
            scores, interactions.items[some], hidden, luck[start : start + batch]
        )
    return evaluated(ranks, interactions.users[cases], ks)


def target_ranks(
    scores: NDArray[np.float32], targets: NDArray[np.int32], hidden: NDArray[np.bool_], luck: NDArray[np.float64]
) -> Ranks:
    """The place of one target a row among the items that are not hidden.

    Args:
        scores: float32 (B, n_items), finite.
        targets: int32 (B,); >= n_items: not in the catalogue.
        hidden: bool (B, n_items), items that cannot be shown.
        luck: float64 (B,) in [0, 1): where among equal scores the target falls.

    Returns:
        float64 (B,), from 1; infinite for a target that is hidden or not in the catalogue.
    """
    n_items = scores.shape[1]
    rows = np.arange(len(targets))
    inside = np.minimum(targets, n_items - 1)
    mine = scores[rows, inside][:, None]
    above = ((scores > mine) & ~hidden).sum(axis=1)
    equal = ((scores == mine) & ~hidden).sum(axis=1) - 1  # the target itself is among them
    ranks = 1.0 + above + np.floor(luck * (np.maximum(equal, 0) + 1))
    return np.where((targets >= n_items) | hidden[rows, inside], np.inf, ranks)


def evaluated(ranks: Ranks, users: NDArray[np.int32], ks: Sequence[int] = KS) -> Evaluation:
    """Metrics of cases with one held-out item each."""
    cases = per_case(ranks, np.arange(len(ranks) + 1), ks)
    means = {name: float(values.mean()) if len(values) else 0.0 for name, values in cases.items()}
    return Evaluation(means, cases, ranks, users)
