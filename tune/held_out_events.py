"""Events of some users set apart from a folder's rows: one each, to learn a ranker from and to choose a chain by."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Interactions
from app.models.kinds import kind_of
from tune.chains import Slices

HISTORY_LIMIT = 1000  # newest entries of a history that models see


def only_some_users(data: Interactions, most: int | None, seed: int) -> Interactions:
    """The events of at most so many users, drawn by the seed; None: all. Users and items keep their rows."""
    users = np.unique(data.users)
    if most is None or len(users) <= most:
        return data
    kept = np.random.default_rng(seed).choice(users, most, replace=False)
    return data.some(np.isin(data.users, kept))


def set_apart(data: Interactions, most: int, seed: int, *, again: bool) -> tuple[Interactions, Slices]:
    """(the rest, to fit sources on; slices of all events in which those set apart come last).

    A user's event is the last; of `sets`, whose order says nothing, any. Half of the users are for the ranker, half
    for validation, at most so many each, all of whom have another event: sources see nothing of what either asks for,
    so one fit serves both.
    """
    random = np.random.default_rng(seed)
    apart = _one_each(data, random)
    users = random.permutation(data.users[apart])
    half = min(most, len(users) // 2)
    chosen = [np.sort(apart[np.isin(data.users[apart], some)]) for some in (users[:half], users[half : 2 * half])]
    kept = np.ones(len(data), np.bool_)
    kept[np.concatenate(chosen)] = False
    rest = np.flatnonzero(kept)
    order = np.concatenate([rest, *chosen])
    times = np.concatenate([data.times[rest], np.full(half, data.end), np.full(half, data.end + 1)])
    whole = replace(
        data,
        users=data.users[order],
        items=data.items[order],
        weights=data.weights[order],
        times=times.astype(np.int64),
        validation=None,
    )
    first = len(rest)
    ranker, validation = np.arange(first, first + half), np.arange(first + half, first + 2 * half)
    return whole.first(first), Slices(whole, ranker, validation, HISTORY_LIMIT, again=again)


def _one_each(data: Interactions, random: np.random.Generator) -> NDArray[np.int64]:
    """int64: of each user with more than one event the place of one."""
    places = random.permutation(len(data)) if kind_of(data) == "sets" else np.arange(len(data))[::-1]
    _, first = np.unique(data.users[places], return_index=True)
    counts = np.bincount(data.users, minlength=data.n_users)
    found = places[first]
    return np.sort(found[counts[data.users[found]] > 1])
