"""A chain of sources and a ranker, the slices of events that it is chosen on, and how it does on past events."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.evaluation.protocols import KS, Evaluation, evaluated
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.models.interactions import Histories, Interactions
from app.ranking.examples import Examples
from app.ranking.next_events import training_examples
from app.ranking.ranker import Ranker
from app.retrieval.query import Query
from app.retrieval.sources import Source, retrieve
from tune.user_columns import UserColumns

Mix = tuple[tuple[str, int], ...]

BATCH = 64


@dataclass(frozen=True, slots=True)
class Chain:
    """What a bundle's chain consists of, before it is refitted on everything."""

    mix: Mix
    candidates: int
    ranker: Ranker | None
    spec: FeatureSpec


@dataclass(frozen=True, slots=True)
class Slices:
    """Cases to choose by: positions in `interactions`, ascending; the ranker slice comes before validation.

    `statistics_age_h`: how old item statistics get while they serve; None: as old as a slice (`statistics_steps`).
    `user_columns`: of each user of `interactions`, where the spec names some.
    `objectives`: by name the event types (`learn.objectives`).
    `again`: whether items of a history may be answers.
    """

    interactions: Interactions
    ranker: NDArray[np.int64]
    validation: NDArray[np.int64]
    history_limit: int
    statistics_age_h: float | None = None
    user_columns: UserColumns | None = None
    objectives: Mapping[str, Collection[str]] = field(default_factory=dict)
    again: bool = False


def judge_chain(
    chain: Chain,
    sources: Mapping[str, Source],
    statistics: ItemStatistics,
    items: ItemFeatures,
    interactions: Interactions,
    cases: NDArray[np.int64],
    history_limit: int,
    user_columns: UserColumns | None = None,
) -> Evaluation:
    """A whole chain on the next events of some cases, consumed items left out, whole catalogue."""
    examples = training_examples(
        functools.partial(retrieve, sources),
        interactions,
        cases,
        spec=chain.spec,
        items=items,
        statistics=statistics,
        mix=chain.mix,
        limit=chain.candidates,
        history_limit=history_limit,
        user_columns=user_columns,
    )
    ranks = (
        order_ranks(examples) if chain.ranker is None else score_ranks(examples, chain.ranker.score(examples.features))
    )
    return evaluated(ranks, interactions.users[cases], KS)


def order_ranks(examples: Examples) -> NDArray[np.float64]:
    """float64 (cases,): the target's place in retrieval order from 1, infinite where it was not retrieved."""
    targets = examples.targets
    return np.where(targets >= 0, targets + 1.0, np.inf)


def score_ranks(examples: Examples, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 (cases,): the target's place by score from 1; equal scores keep retrieval order, as at serving."""
    targets = examples.targets
    has = targets >= 0
    rows = np.where(has, examples.offsets[:-1] + targets, 0)
    mine = np.where(has, scores[rows] if len(scores) else 0.0, np.inf)[examples.owner]
    earlier = np.arange(len(scores)) < rows[examples.owner]
    above = np.bincount(examples.owner, (scores > mine) | ((scores == mine) & earlier), minlength=len(examples))
    return np.where(has, 1.0 + above, np.inf)


def plain_query(whole: Histories, history_limit: int, n_items: int, mix: Mix = (), limit: int = 0) -> Query:
    """The question of each history's next item: nothing consumed comes back, no filter."""
    masks, unmasked = np.empty((0, n_items), np.bool_), np.full(len(whole), -1, np.int32)
    return Query(whole.last(history_limit), whole.items, whole.offsets, masks, unmasked, mix, limit)
