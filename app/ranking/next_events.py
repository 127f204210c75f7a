"""A ranker's examples where nothing was logged: real candidates for past events, with what serving would have seen."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import FeatureContext, feature_names, features
from app.models.interactions import Histories, Interactions
from app.ranking.examples import NEXT, Examples
from app.retrieval.query import Candidates, Query

Retrieve = Callable[[Query], Candidates]
# Statistics for the cases up to (not with) a place among them, ascending.
Steps = Iterable[tuple[int, ItemStatistics]]

MOST_STEPS = 16  # times as of which statistics are counted anew for a set of examples: each looks at all events
HOUR_MS = 3_600_000


def statistics_steps(
    interactions: Interactions,
    cases: NDArray[np.int64],
    half_lives_days: Sequence[float],
    age_h: float | None = None,
) -> Iterator[tuple[int, ItemStatistics]]:
    """Item statistics as of the cases: each from the events before its own time alone, one in memory at once.

    Args:
        cases: int64, ascending positions in `interactions`.
        age_h: how old statistics get while they serve, in hours: those of a case are at most so old (older where that
            would take more than MOST_STEPS of them); None: all as of the first case, as a bundle's stay as they are.

    Yields:
        (the place in `cases` up to which they hold, the statistics).
    """
    if not len(cases):
        return
    since = interactions.times[cases] - interactions.times[cases[0]]
    width = int(since[-1]) + 1 if age_h is None else max(1, int(age_h * HOUR_MS))
    while len(np.unique(since // width)) > MOST_STEPS:
        width *= 2
    cells, starts = np.unique(since // width, return_index=True)
    for cell, stop in zip(cells.tolist(), [*starts[1:].tolist(), len(cases)], strict=True):
        as_of = int(interactions.times[cases[0]]) + cell * width
        yield stop, ItemStatistics.of(interactions, half_lives_days, as_of=as_of)


def training_examples(
    retrieve: Retrieve,
    interactions: Interactions,
    cases: NDArray[np.int64],
    *,
    spec: FeatureSpec,
    items: ItemFeatures,
    statistics: ItemStatistics | Steps,
    mix: Sequence[tuple[str, int]],
    limit: int,
    history_limit: int = 200,
    batch: int = 64,
    user_columns: Sequence[Mapping[str, Any] | None] | None = None,
    objectives: Mapping[str, Collection[str]] | None = None,
    again: bool = False,
) -> Examples:
    """Candidates and features of past events, as serving would have had them just before each.

    The sources behind `retrieve` must have been fitted on events before the first case; otherwise the ranker learns
    from what it will not have. Memory: at most 4 bytes × cases × `limit` × features, and a batch.

    Args:
        retrieve: the real retrieval, for example `functools.partial(retrieve, sources)`.
        interactions: all events; each case's history is its user's earlier ones.
        cases: int64, ascending positions in `interactions`.
        statistics: those of all cases, or of one part of them after the other (`statistics_steps`).
        mix, limit: as in `Query`.
        history_limit: newest entries that models and features look at; all consumed items are banned nevertheless (but
            for `again`).
        batch: cases retrieved at once.
        user_columns: per user of `interactions`, for a spec that names some.
        objectives: beside NEXT, by name the event types that the next event must be of.
        again: whether items of the history may be candidates.

    Returns:
        Examples of all cases; a case without candidates has no rows, one whose item was not retrieved no answered one.

    Raises:
        ValueError: statistics are from after a case that they are for.
    """
    steps = [(len(cases), statistics)] if isinstance(statistics, ItemStatistics) else statistics
    rows = np.empty((len(cases) * limit, len(feature_names(spec))), np.float32)  # pages that are not filled cost none
    offsets, targets, done = np.zeros(len(cases) + 1, np.int64), np.full(len(cases), -1, np.int64), 0
    names = [name for name, _ in mix]
    for stop, counted in steps:
        mine = cases[done:stop]
        _check_age(interactions, mine, counted)
        for start, histories, query in _queries(interactions, mine, mix, limit, history_limit, batch, again):
            chosen, first = mine[start : start + batch], done + start
            found = retrieve(query)
            columns = None if user_columns is None else [user_columns[u] for u in interactions.users[chosen].tolist()]
            table = features(spec, FeatureContext(spec, histories, found, names, items, counted, user_columns=columns))
            rows[offsets[first] : offsets[first] + len(table)] = table
            offsets[first + 1 : first + 1 + len(chosen)] = offsets[first] + found.offsets[1:]
            targets[first : first + len(chosen)] = _targets(found, interactions.items[chosen])
        done = stop
    made = Examples.of_targets(rows[: offsets[-1]], offsets, targets)
    if not objectives:
        return made
    labels = [made.labels[:, 0] * _of_types(interactions, cases, types)[made.owner] for types in objectives.values()]
    return replace(made, labels=np.stack([made.labels[:, 0], *labels], axis=1), objectives=(NEXT, *objectives))


def told_apart(
    interactions: Interactions, cases: NDArray[np.int64], objectives: Mapping[str, Collection[str]], least: int
) -> dict[str, Collection[str]]:
    """The objectives that at least so many cases answer, and not all of them."""
    counts = {name: int(_of_types(interactions, cases, kinds).sum()) for name, kinds in objectives.items()}
    return {name: kinds for name, kinds in objectives.items() if least <= counts[name] < len(cases)}


def _of_types(interactions: Interactions, cases: NDArray[np.int64], types: Collection[str]) -> NDArray[np.float32]:
    """float32 (cases,): 1 where the case's own event is of one of the types."""
    if interactions.kinds is None:
        return np.zeros(len(cases), np.float32)
    wanted = np.array([name in types for name in interactions.kind_names], np.float32)
    return wanted[interactions.kinds[cases]]


def _check_age(interactions: Interactions, cases: NDArray[np.int64], statistics: ItemStatistics) -> None:
    if len(cases) and statistics.as_of > interactions.times[cases[0]]:
        first = int(interactions.times[cases[0]])
        raise ValueError(f"statistics as of {statistics.as_of}: wanted none later than the first case ({first})")


def _queries(
    interactions: Interactions,
    cases: NDArray[np.int64],
    mix: Sequence[tuple[str, int]],
    limit: int,
    history_limit: int,
    batch: int,
    again: bool,
) -> Iterator[tuple[int, Histories, Query]]:
    for number, whole in enumerate(interactions.batches_before(cases, batch)):
        recent = whole.last(history_limit)
        masks = np.empty((0, interactions.n_items), np.bool_)
        unmasked = np.full(len(whole), -1, np.int32)
        banned, ends = (whole.items[:0], np.zeros_like(whole.offsets)) if again else (whole.items, whole.offsets)
        yield number * batch, recent, Query(recent, banned, ends, masks, unmasked, tuple(mix), limit)


def _targets(found: Candidates, wanted: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 (B,): where each question's wanted row stands among its candidates, -1: nowhere."""
    targets = np.full(len(wanted), -1, np.int64)
    hits = np.flatnonzero(found.rows == wanted[found.owner])
    targets[found.owner[hits]] = hits - found.offsets[:-1][found.owner[hits]]
    return targets
