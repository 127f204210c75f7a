"""From the best model of each family to one chain: which sources, how many from each, and whether a ranker pays."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from app.evaluation.metrics import bootstrap_interval
from app.evaluation.protocols import KS, Evaluation, evaluated
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import feature_names, make_spec
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue, Histories, Interactions
from app.ranking.examples import Examples, both
from app.ranking.next_events import statistics_steps, told_apart, training_examples
from app.ranking.ranker import Ranker
from app.retrieval.allowed import Allowed
from app.retrieval.merge import Found, merge
from app.retrieval.query import Query
from app.retrieval.sources import Source, retrieve, source_of
from tune.ranker_plan import RankerPlan
from tune.user_columns import UserColumns

Mix = tuple[tuple[str, int], ...]
Logged = Callable[[tuple[str, ...], int | None], Examples | None]
Describe = Callable[[Catalogue, Sequence[str]], FeatureSpec]
Earlier = Callable[[Sequence[str]], Mapping[str, CandidateModel]]

LEADING, FOLLOWING, FILLING = 100, 60, 20  # candidates of the first source, of each further one, of a filling one
# Always in the mix, if fitted: new items are found by content and vectors, and whoever has no history by popularity.
FILLERS = ("content", "vector", "popularity")
MOST_SOURCES = 4
WORTH = 0.02  # a further source must find this share more targets: each costs time in every answer
MOST_RANKER_CASES = 6000
MIX_CASES = 1000
MANY_LOGGED = 1000  # logged answers with a reaction, below which `examples: auto` takes next events
LEAST_OF_OBJECTIVE = 200  # events of its types in the ranker slice, to learn an objective from next events
INTERVAL_ERRORS = 1.96  # standard errors from a mean to the end of its 95 % interval
BATCH = 64
DEFAULT_PLAN = RankerPlan()


@dataclass(frozen=True, slots=True)
class Chain:
    """What a bundle's chain consists of, before it is refitted on everything."""

    mix: Mix
    candidates: int
    ranker: Ranker | None
    spec: FeatureSpec


@dataclass(frozen=True, slots=True)
class Assembled:
    """A chain with the figures that it was chosen by.

    Attributes:
        evaluation: the chain's, on the validation cases.
        ablation: the metric of each stage and of what it is measured against, on the same cases.
        examples: for the final ranker: the whole log, or where the ranker learned from next events those of ranker
            slice and validation, each from sources fitted before it.
    """

    chain: Chain
    evaluation: Evaluation
    ablation: dict[str, float]
    examples: Examples


@dataclass(frozen=True, slots=True)
class Slices:
    """Cases to choose by: positions in `interactions`, ascending; the ranker slice comes before validation.

    `statistics_age_h`: how old item statistics get while they serve; None: as old as a slice (`statistics_steps`).
    `user_columns`: of each user of `interactions`, where the spec names some.
    `objectives`: by name the event types (`learn.objectives`).
    """

    interactions: Interactions
    ranker: NDArray[np.int64]
    validation: NDArray[np.int64]
    history_limit: int
    statistics_age_h: float | None = None
    user_columns: UserColumns | None = None
    objectives: Mapping[str, Collection[str]] = field(default_factory=dict)


def assemble(
    models: Mapping[str, CandidateModel],
    values: Mapping[str, float],
    catalogue: Catalogue,
    slices: Slices,
    *,
    earlier: Earlier,
    metric: str,
    candidates: int,
    seed: int,
    describe: Describe = make_spec,
    rankers: RankerPlan = DEFAULT_PLAN,
    logged: Logged | None = None,
) -> Assembled:
    """Chooses the chain as it will serve: whatever is asked has learned from everything up to what it is asked for.

    The sources of the mix are asked for validation as fitted before validation, and for the ranker's examples as
    fitted before the ranker slice. The best family alone, the merged sources and the ranked ones stand against each
    other on validation (`chosen`).

    Args:
        models: the best of each family, fitted before validation.
        values: their own metric on the validation cases.
        earlier: fits families again, before the ranker slice.
        candidates: how many reach the ranker.
        describe: makes the spec of the features.
        rankers: which are tried.
        logged: examples from the log, of some features and before some time (milliseconds; None: all), None: too few.
    """
    objectives = told_apart(slices.interactions, slices.ranker, slices.objectives, LEAST_OF_OBJECTIVE)
    slices = replace(slices, objectives=objectives)
    sources = {name: source_of(model) for name, model in models.items()}
    random = np.random.default_rng(seed)
    mix = choose_mix(sources, values, slices, _some(slices.validation, MIX_CASES, random), candidates)
    spec = describe(catalogue, [name for name, _ in mix])
    items = ItemFeatures.of(spec, catalogue)
    lone = Chain(alone(mix), candidates, None, spec.model_copy(update={"features": ()}))
    before = {name: source_of(model) for name, model in earlier([name for name, _ in mix]).items()}
    learned = _examples(
        Chain(mix, candidates, None, spec), before, items, slices, _some(slices.ranker, MOST_RANKER_CASES, random)
    )
    judged = _examples(Chain(mix, candidates, None, spec), sources, items, slices, slices.validation)
    users = slices.interactions.users[slices.validation]
    single = evaluated(order_ranks(_examples(lone, sources, items, slices, slices.validation)), users)
    found = [
        (Chain(lone.mix, candidates, None, spec), single),
        (Chain(mix, candidates, None, spec), evaluated(order_ranks(judged), users)),
    ]
    ablation = {f"{name} alone": value for name, value in sorted(values.items(), key=lambda entry: -entry[1])}
    ablation |= {"sources merged": found[1][1].metrics[metric]}
    names = feature_names(spec)
    log = None
    if logged is not None and rankers.examples != "next":
        log = logged(names, int(slices.interactions.times[slices.validation[0]]))
        if log is not None and rankers.examples == "auto" and len(log.answered()) < MANY_LOGGED:
            log = None
    source = "log" if log is not None else "next events"
    for kind in rankers.kinds if log is not None or rankers.examples != "log" else ():
        ranker = rankers.fitted(kind, names, learned if log is None else log, seed)
        if ranker is not None:
            ranked = evaluated(score_ranks(judged, ranker.score(judged.features)), users)
            ablation |= {f"merged and ranked ({kind}, {source})": ranked.metrics[metric]}
            found.append((Chain(mix, candidates, ranker, spec), ranked))
    chain, evaluation = chosen(found, metric)
    everything = both(learned, judged) if log is None or logged is None else logged(names, None) or log
    return Assembled(chain, evaluation, ablation, everything)


def chosen(found: Sequence[tuple[Chain, Evaluation]], metric: str) -> tuple[Chain, Evaluation]:
    """Of chains on the same cases, simplest first, the last that is better than the one chosen so far.

    Further sources must be better beyond noise: one standard error of the difference by case, users drawn together. A
    ranker must only be better, since the final one learns from about twice the examples of the one that was judged.
    """
    best = found[0]
    for chain, evaluation in found[1:]:
        difference = evaluation.per_case[metric] - best[1].per_case[metric]
        low, high = bootstrap_interval(difference, evaluation.users)
        noise = (high - low) / (2 * INTERVAL_ERRORS) if chain.ranker is None else 0.0
        if difference.mean() > noise:
            best = (chain, evaluation)
    return best


def alone(mix: Mix) -> Mix:
    """The first source's own order; of the fillers so little that no list of usual length shows it."""
    return (mix[0], *((name, 1) for name, _ in mix[1:] if name in FILLERS))


def _examples(
    chain: Chain, sources: Mapping[str, Source], items: ItemFeatures, slices: Slices, cases: NDArray[np.int64]
) -> Examples:
    """What a chain retrieves for some cases, with item statistics as of the slice that they are of."""
    whole, half_lives = slices.interactions, chain.spec.half_lives_days
    return training_examples(
        functools.partial(retrieve, sources),
        whole,
        cases,
        spec=chain.spec,
        items=items,
        statistics=statistics_steps(whole, cases, half_lives, slices.statistics_age_h),
        mix=chain.mix,
        limit=chain.candidates,
        history_limit=slices.history_limit,
        user_columns=slices.user_columns,
        objectives=slices.objectives,
    )


def choose_mix(
    sources: Mapping[str, Source],
    values: Mapping[str, float],
    slices: Slices,
    cases: NDArray[np.int64],
    candidates: int,
) -> Mix:
    """Starts with the best family and adds the one that finds most further targets, while it is worth it."""
    order = sorted(values, key=lambda name: (-values[name], name))
    lists = {name: _lists(sources[name], slices, cases) for name in order}
    targets = slices.interactions.items[cases]
    fillers = [name for name in order if name in FILLERS and name != order[0]]
    chosen = [order[0]]

    def sized(names: Sequence[str]) -> Mix:
        following = [(name, FOLLOWING) for name in names[1:] if name not in fillers]
        return ((names[0], LEADING), *following, *((name, FILLING) for name in fillers))

    def found(names: Sequence[str]) -> float:
        mix = sized(names)
        merged = merge([_cut(lists[name], k) for name, k in mix], tuple(k for _, k in mix), candidates)
        return float((merged.rows == targets[merged.owner]).sum())

    present = found(chosen)
    while len(chosen) < MOST_SOURCES:
        further = {name: found([*chosen, name]) for name in order if name not in chosen and name not in fillers}
        best = max(further, key=lambda name: further[name], default=None)
        if best is None or further[best] < present * (1 + WORTH) or further[best] == 0:
            break
        chosen.append(best)
        present = further[best]
    return sized(chosen)


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


def _some(cases: NDArray[np.int64], most: int, random: np.random.Generator) -> NDArray[np.int64]:
    return cases if len(cases) <= most else np.sort(random.choice(cases, most, replace=False))


def _lists(source: Source, slices: Slices, cases: NDArray[np.int64]) -> list[Found]:
    """The source's own candidates of each case, consumed items left out."""
    found: list[Found] = []
    for start in range(0, len(cases), BATCH):
        whole = slices.interactions.histories_before(cases[start : start + BATCH])
        query = plain_query(whole, slices.history_limit, slices.interactions.n_items)
        found += source.search(query.histories, LEADING, Allowed.of(query))
    return found


def plain_query(whole: Histories, history_limit: int, n_items: int, mix: Mix = (), limit: int = 0) -> Query:
    """The question of each history's next item: nothing consumed comes back, no filter."""
    masks, unmasked = np.empty((0, n_items), np.bool_), np.full(len(whole), -1, np.int32)
    return Query(whole.last(history_limit), whole.items, whole.offsets, masks, unmasked, mix, limit)


def _cut(lists: Sequence[Found], k: int) -> list[Found]:
    return [(rows[:k], scores[:k]) for rows, scores in lists]
