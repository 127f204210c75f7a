"""Splits in time: everything that chooses sees only what came before what it is judged on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Interactions


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Events cut by time into fit | ranker slice | validation; cases are positions in `interactions`.

    Attributes:
        interactions: all the events: the histories of cases come from these, up to each case's own event.
        fit: the events before the ranker slice; families of a ranker's examples are fitted on these.
        before_validation: the events before the validation slice; what validation judges is fitted on these.
        ranker_cases: int64, positions of the ranker slice.
        validation_cases: int64, positions of the validation slice.
    """

    interactions: Interactions
    fit: Interactions
    before_validation: Interactions
    ranker_cases: NDArray[np.int64]
    validation_cases: NDArray[np.int64]


def by_time(interactions: Interactions, validation_fraction: float, ranker_fraction: float = 0.0) -> TimeSplit:
    """The newest `validation_fraction` of the events validates, the `ranker_fraction` before it is the ranker slice.

    Cut by position, so that events of one instant are separated by file order.
    """
    n = len(interactions)
    validation = n - int(n * validation_fraction)
    ranker = validation - int(n * ranker_fraction)
    return TimeSplit(
        interactions,
        interactions.first(ranker),
        interactions.first(validation),
        np.arange(ranker, validation),
        np.arange(validation, n),
    )


def of_some_users(interactions: Interactions, cases: NDArray[np.int64], n_users: int, seed: int) -> NDArray[np.int64]:
    """The cases of at most `n_users` users drawn at random by seed: whole users, so that intervals by user hold."""
    users = np.unique(interactions.users[cases])
    if len(users) <= n_users:
        return cases
    kept = np.random.default_rng(seed).choice(users, n_users, replace=False)
    return cases[np.isin(interactions.users[cases], kept)]
