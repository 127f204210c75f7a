"""Training rows of the ranker: real candidates for past events, with the features that serving would have seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import FeatureContext, feature_names, features
from app.models.interactions import Histories, Interactions
from app.retrieval.query import Candidates, Query

Retrieve = Callable[[Query], Candidates]


@dataclass(frozen=True, slots=True)
class Examples:
    """Candidates of many cases with their features, flat.

    Attributes:
        features: float32 (R, F).
        offsets: int64 (cases + 1,).
        targets: int64 (cases,): place of the target among the case's candidates from 0; -1: it was not retrieved.
    """

    features: NDArray[np.float32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def owner(self) -> NDArray[np.int64]:
        """int64 (R,): the case of each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def slice(self, start: int, end: int) -> "Examples":
        """Cases start to end - 1, without copying rows."""
        first, last = self.offsets[start], self.offsets[end]
        return Examples(self.features[first:last], self.offsets[start : end + 1] - first, self.targets[start:end])

    def take(self, cases: NDArray[np.int64]) -> "Examples":
        """The given cases, in that order."""
        lengths = np.diff(self.offsets)[cases]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][cases] - offsets[:-1], lengths)
        return Examples(self.features[rows], offsets, self.targets[cases])

    def thinned(self, most: int, random: np.random.Generator) -> "Examples":
        """About `most` random candidates of each case, the target always among them."""
        lengths = np.diff(self.offsets)
        if not len(lengths) or lengths.max() <= most:
            return self
        keep = random.random(len(self.features), np.float32) < (most / np.maximum(lengths, 1))[self.owner]
        has = self.targets >= 0
        rows = self.offsets[:-1] + np.maximum(self.targets, 0)
        keep[rows[has]] = True
        before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        targets = np.where(has, before[np.where(has, rows, 0)] - before[self.offsets[:-1]], -1)
        return Examples(self.features[keep], before[self.offsets], targets)

    def with_target(self) -> "Examples":
        """Only the cases whose target was retrieved."""
        found = np.flatnonzero(self.targets >= 0)
        return self if len(found) == len(self) else self.take(found)


def training_examples(
    retrieve: Retrieve,
    interactions: Interactions,
    cases: NDArray[np.int64],
    *,
    spec: FeatureSpec,
    items: ItemFeatures,
    statistics: ItemStatistics,
    mix: Sequence[tuple[str, int]],
    limit: int,
    history_limit: int = 200,
    batch: int = 64,
    user_columns: Sequence[Mapping[str, Any] | None] | None = None,
) -> Examples:
    """Candidates and features of past events, as serving would have had them just before each.

    The sources behind `retrieve` and the statistics must have been fitted on events before the first case;
    otherwise the ranker learns from what it will not have.

    Args:
        retrieve: the real retrieval, for example `functools.partial(retrieve, sources)`.
        interactions: all events; each case's history is its user's earlier ones.
        cases: int64, ascending positions in `interactions`.
        mix, limit: as in `Query`.
        history_limit: newest entries that models and features look at; all consumed items are banned nevertheless.
        batch: cases retrieved at once; memory beyond the result is bounded by it.
        user_columns: per user of `interactions`, for a spec that names some.

    Returns:
        Examples of all cases; a case without candidates has no rows and target -1.

    Raises:
        ValueError: the statistics are from after the first case.
    """
    if len(cases) and statistics.as_of > interactions.times[cases[0]]:
        first = int(interactions.times[cases[0]])
        raise ValueError(f"statistics as of {statistics.as_of}: wanted none later than the first case ({first})")
    parts = []
    for chosen, histories, query in _queries(interactions, cases, mix, limit, history_limit, batch):
        found = retrieve(query)
        columns = None if user_columns is None else [user_columns[u] for u in interactions.users[chosen].tolist()]
        context = FeatureContext(
            spec, histories, found, [name for name, _ in query.mix], items, statistics, user_columns=columns
        )
        parts.append((features(spec, context), np.diff(found.offsets), _targets(found, interactions.items[chosen])))
    if not parts:
        width = len(feature_names(spec))
        return Examples(np.empty((0, width), np.float32), np.zeros(1, np.int64), np.empty(0, np.int64))
    lengths = np.concatenate([part[1] for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Examples(np.concatenate([part[0] for part in parts]), offsets, np.concatenate([part[2] for part in parts]))


def _queries(
    interactions: Interactions,
    cases: NDArray[np.int64],
    mix: Sequence[tuple[str, int]],
    limit: int,
    history_limit: int,
    batch: int,
) -> Iterator[tuple[NDArray[np.int64], Histories, Query]]:
    for start in range(0, len(cases), batch):
        chosen = cases[start : start + batch]
        whole = interactions.histories_before(chosen)
        recent = whole.last(history_limit)
        masks = np.empty((0, interactions.n_items), np.bool_)
        unmasked = np.full(len(chosen), -1, np.int32)
        yield chosen, recent, Query(recent, whole.items, whole.offsets, masks, unmasked, tuple(mix), limit)


def _targets(found: Candidates, wanted: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 (B,): where each question's wanted row stands among its candidates, -1: nowhere."""
    targets = np.full(len(wanted), -1, np.int64)
    hits = np.flatnonzero(found.rows == wanted[found.owner])
    targets[found.owner[hits]] = hits - found.offsets[:-1][found.owner[hits]]
    return targets
