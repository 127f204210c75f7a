"""From the best of each family to one chain: ranks by hand, sources that pay, the same figures by another way."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from app.evaluation.protocols import Evaluation, evaluated
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import feature_names
from app.models.candidate import CandidateModel
from app.models.families import make
from app.models.interactions import Catalogue
from app.ranking.examples import Examples, both
from app.ranking.network import NetworkRanker
from app.retrieval.sources import retrieve, source_of
from tests.unit.chain_world import catalogue, interactions
from tune.assemble import (
    FILLERS,
    Assembled,
    Chain,
    Slices,
    alone,
    assemble,
    choose_mix,
    chosen,
    judge_chain,
    order_ranks,
    plain_query,
    score_ranks,
)
from tune.ranker_plan import RankerPlan


def examples(*targets: int) -> Examples:
    """Three candidates a case."""
    n = len(targets)
    return Examples.of_targets(
        np.zeros((3 * n, 1), np.float32), np.arange(0, 3 * n + 1, 3), np.array(targets, np.int64)
    )


def test_ranks_by_order_and_by_score() -> None:
    found = examples(1, -1, 2)
    assert order_ranks(found).tolist() == [2.0, np.inf, 3.0]
    scores = np.array([0.1, 0.9, 0.5, 1, 1, 1, 0.7, 0.9, 0.7], np.float32)
    assert score_ranks(found, scores).tolist() == [1.0, np.inf, 3.0]  # equal scores keep retrieval order


def test_two_sets_of_examples_in_one() -> None:
    merged = both(examples(0, 1), examples(2))
    assert merged.offsets.tolist() == [0, 3, 6, 9]
    assert merged.targets.tolist() == [0, 1, 2]


def world() -> tuple[Catalogue, Slices, dict[str, float]]:
    whole = interactions()
    n = len(whole)
    cases = np.arange(n)
    slices = Slices(whole, cases[int(n * 0.7) : int(n * 0.85)], cases[int(n * 0.85) :], 200)
    return catalogue(), slices, {"item_knn": 0.3, "popularity": 0.1, "content": 0.05, "ease": 0.29}


def test_a_mix_starts_with_the_best_and_always_has_the_fillers() -> None:
    items, slices, values = world()
    fit = slices.interactions.before(int(slices.interactions.times[slices.ranker[0]]))
    sources = {name: source_of(make(name).fit(fit, items)) for name in values}
    mix = choose_mix(sources, values, slices, slices.ranker, 40)
    assert mix[0][0] == "item_knn"
    assert set(FILLERS) & set(values) <= {name for name, _ in mix}
    assert set(FILLERS) & set(values) == {"content", "popularity"}
    alone = choose_mix({"popularity": sources["popularity"]}, {"popularity": 0.1}, slices, slices.ranker, 40)
    assert alone == (("popularity", 100),)


def test_what_is_chosen_is_measured_as_a_bundle_would_be() -> None:
    items, slices, values = world()
    whole = slices.interactions
    split = {
        name: int(whole.times[cases[0]]) for name, cases in (("ranker", slices.ranker), ("all", slices.validation))
    }
    models = {name: make(name).fit(whole.before(split["all"]), items) for name in values}
    asked: list[str] = []

    def earlier(families: Sequence[str]) -> dict[str, CandidateModel]:
        asked.extend(families)
        return {name: make(name).fit(whole.before(split["ranker"]), items) for name in families}

    found = assemble(models, values, items, slices, earlier=earlier, metric="ndcg_at_10", candidates=40, seed=0)
    assert next(iter(found.ablation)) == "item_knn alone"
    assert {name for name, _ in found.chain.mix} <= set(asked)
    assert len(found.examples) == len(slices.ranker) + len(slices.validation)
    again = judge_chain(
        found.chain,
        {name: source_of(model) for name, model in models.items()},
        ItemStatistics.of(whole, found.chain.spec.half_lives_days, as_of=split["all"]),
        ItemFeatures.of(found.chain.spec, items),
        whole,
        slices.validation,
        200,
    )
    np.testing.assert_array_equal(again.ranks, found.evaluation.ranks)


def test_a_ranker_learns_from_the_log_where_there_is_one() -> None:
    items, slices, values = world()
    whole = slices.interactions
    models = {name: make(name).fit(whole.first(int(slices.ranker[0])), items) for name in values}
    asked: list[tuple[int, int | None]] = []

    def logged(names: tuple[str, ...], before_ms: int | None) -> Examples:
        """80 answers of four items; the click is on what is named first."""
        asked.append((len(names), before_ms))
        rows = np.random.default_rng(0).normal(size=(320, len(names))).astype(np.float32)
        found = Examples.of_targets(rows, np.arange(0, 321, 4), np.zeros(80, np.int64))
        return replace(found, objectives=("click",), positions=np.tile(np.arange(1, 5, dtype=np.int32), 80))

    def assembled(plan: RankerPlan) -> Assembled:
        return assemble(
            models,
            values,
            items,
            slices,
            earlier=lambda names: {name: models[name] for name in names},
            metric="ndcg_at_10",
            candidates=40,
            seed=0,
            rankers=plan,
            logged=logged,
        )

    of_log = assembled(RankerPlan(kinds=("network", "lightgbm"), examples="log"))
    assert {"merged and ranked (network, log)", "merged and ranked (lightgbm, log)"} <= set(of_log.ablation)
    assert of_log.examples.objectives == ("click",)
    width = len(feature_names(of_log.chain.spec)) or asked[0][0]
    assert asked == [(width, int(whole.times[slices.validation[0]])), (width, None)]
    of_few = assembled(RankerPlan())
    assert "merged and ranked (network, next events)" in of_few.ablation  # 80 answers say less than as many events
    assert len(of_few.examples) == len(slices.ranker) + len(slices.validation)
    asked.clear()
    of_events = assembled(RankerPlan(examples="next"))
    assert not asked
    assert "merged and ranked (network, next events)" in of_events.ablation
    assert len(of_events.examples) == len(slices.ranker) + len(slices.validation)
    none = assembled(RankerPlan(kinds=()))
    assert not [name for name in none.ablation if "ranked" in name]
    assert none.chain.ranker is None


def test_the_best_family_alone_keeps_its_order() -> None:
    items, slices, values = world()
    models = {name: make(name).fit(slices.interactions, items) for name in values}
    sources = {name: source_of(model) for name, model in models.items()}
    mix = alone((("item_knn", 100), ("ease", 60), ("content", 20), ("popularity", 20)))
    assert mix == (("item_knn", 100), ("content", 1), ("popularity", 1))
    query = plain_query(slices.interactions.histories_before(slices.validation), 200, len(items), mix, 100)
    merged = retrieve(sources, query)
    named = merged.ranks[:, 0]
    for start, end in itertools.pairwise(merged.offsets):
        shown = named[start:end][:20]
        assert shown.tolist() == list(range(1, len(shown) + 1))


def test_what_costs_more_must_be_better_beyond_noise() -> None:
    spec = FeatureSpec(sources=("a",), features=())
    users = np.repeat(np.arange(20), 5).astype(np.int32)
    some = np.random.default_rng(0).random(len(users)) < 0.3

    def chain(name: str, ranks: np.ndarray) -> tuple[Chain, Evaluation]:
        return Chain(((name, 1),), 10, None, spec), evaluated(ranks, users)

    simple = chain("simple", np.where(some, 3.0, np.inf))
    lucky = chain("lucky", np.where((some | (users == 1)) & (users > 0), 3.0, np.inf))  # better for one user
    clear = chain("clear", np.where(some, 1.0, np.inf))
    worse = chain("worse", np.full(len(users), np.inf))
    assert chosen([simple, lucky, worse], "ndcg_at_10") == simple
    assert chosen([simple, clear, lucky], "ndcg_at_10") == clear
    ranker = NetworkRanker(("a",))
    ranked = (Chain(simple[0].mix, 10, ranker, spec), lucky[1])  # the final one learns from more
    assert chosen([simple, ranked], "ndcg_at_10") == ranked
    assert chosen([ranked, simple], "ndcg_at_10") == ranked
