"""From the best model of each family to one chain: sources, how many from each, and the ranker, chosen together."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.protocols import Evaluation
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.table import feature_names, make_spec
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue
from app.ranking.examples import Examples, both
from app.ranking.next_events import statistics_steps, told_apart, training_examples
from app.retrieval.sources import Source, retrieve, source_of
from tune.ablation import ablation
from tune.case_table import CaseTable
from tune.chain_cost import FREE, Costs
from tune.chains import Chain, Slices
from tune.choice import LOG, Choice, Learning, Logged, chosen
from tune.mixes import DEFAULT_MIX, MixPlan
from tune.ranker_plan import RankerPlan

Describe = Callable[[Catalogue, Sequence[str]], FeatureSpec]
Earlier = Callable[[Sequence[str]], Mapping[str, CandidateModel]]

MOST_RANKER_CASES = 6000
LEAST_OF_OBJECTIVE = 200  # events of its types in the ranker slice, to learn an objective from next events
DEFAULT_PLAN = RankerPlan()


@dataclass(frozen=True, slots=True)
class Assembled:
    """A chain with the figures that it was chosen by.

    Attributes:
        evaluation: the chain's, on the validation cases.
        ablation: what each stage contributes on the same cases (`tune.ablation.ablation`).
        examples: for the final ranker: the whole log, or where the ranker learned from next events those of ranker
            slice and validation, each from sources fitted before it; None: the chain has no ranker.
        search: how many mixes were judged, and whether the budget cut that short.
    """

    chain: Chain
    evaluation: Evaluation
    ablation: list[dict[str, Any]]
    examples: Examples | None
    search: dict[str, Any] = field(default_factory=dict)


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
    mixes: MixPlan = DEFAULT_MIX,
    costs: Costs = FREE,
    likely: Callable[[Sequence[str]], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Assembled:
    """Chooses the chain as it will serve: whatever is asked has learned from everything up to what it is asked for.

    All sources are asked once: for validation as fitted before validation, and for the ranker's examples as fitted
    before the ranker slice. Mixes are searched twice over, by their own order and by that of a linear ranker that
    learns anew for each; the mixes that both lead to get the rankers of the plan. What is best on validation by the
    metric is taken (`chosen`), the best family alone and no ranker among it.

    Args:
        models: the best of each family, fitted before validation.
        values: their own metric on the validation cases.
        earlier: fits families again, before the ranker slice.
        candidates: how many reach the ranker.
        describe: makes the spec of the features.
        rankers: which are tried.
        logged: examples from the log, of some features and before some time (milliseconds; None: all), None: too few.
        mixes: how far the search goes.
        costs: what serving takes off the metric.
        likely: hears which families may end up in the chain, as soon as that is known.
        tell: hears how far it is.
    """
    objectives = told_apart(slices.interactions, slices.ranker, slices.objectives, LEAST_OF_OBJECTIVE)
    slices = replace(slices, objectives=objectives)
    order = sorted(values, key=lambda name: (-values[name], name))
    pool = describe(catalogue, order)
    items = ItemFeatures.of(pool, catalogue)
    spec_of = functools.partial(describe, catalogue)
    sources = {name: source_of(models[name]) for name in order}
    tell("asking every source")
    featured = pool if rankers.kinds else pool.model_copy(update={"features": ()})
    judging = CaseTable.of(sources, slices, slices.validation, featured, items, mixes.depth)
    learned, before = None, dict[str, Source]()
    if rankers.kinds:
        costs = costs.with_ranker(judging, slices, pool, items, candidates)
        if rankers.examples != "log":
            before = {name: source_of(model) for name, model in earlier(order).items()}
            some = _some(slices.ranker, mixes.cases, np.random.default_rng(seed))
            learned = CaseTable.of(before, slices, some, pool, items, mixes.depth)
    learning = Learning(rankers, logged, int(slices.interactions.times[slices.validation[0]]), seed, learned)
    users = slices.interactions.users[slices.validation]
    choice = Choice(
        judging,
        learning,
        users,
        order,
        spec_of,
        limit=candidates,
        costs=costs,
        plan=mixes,
        tell=tell,
    )
    options = choice.options(likely)
    best = chosen(options, metric)
    tell("leaving out each source")
    rows = ablation(choice.stages(best, options), users, metric, seed=seed)
    search = {"mixes": choice.judged, "cut": choice.cut, "source": best.source}
    if best.chain.ranker is None:
        return Assembled(best.chain, best.evaluation, rows, None, search)
    if best.source == LOG and logged is not None:
        everything = logged(feature_names(best.chain.spec), None)
    else:
        tell("examples for the final ranker")
        some = _some(slices.ranker, MOST_RANKER_CASES, np.random.default_rng(seed))
        everything = both(
            _examples(best.chain, before, items, slices, some),
            _examples(best.chain, sources, items, slices, slices.validation),
        )
    return Assembled(best.chain, best.evaluation, rows, everything, search)


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
        again=slices.again,
    )


def _some(cases: NDArray[np.int64], most: int, random: np.random.Generator) -> NDArray[np.int64]:
    return cases if len(cases) <= most else np.sort(random.choice(cases, most, replace=False))
