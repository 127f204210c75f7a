"""From the best of each family to one chain: ranks by hand, the same figures by another way, the log."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.evaluation.protocols import Evaluation, evaluated
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import make_spec
from app.models.candidate import CandidateModel
from app.models.families import make
from app.models.interactions import Catalogue
from app.ranking.examples import Examples, both
from app.ranking.network import NetworkRanker
from app.ranking.next_events import training_examples
from app.retrieval.sources import Source, retrieve, source_of
from tests.unit.chain_world import catalogue, interactions
from tune.assemble import Assembled, assemble
from tune.case_table import CaseTable
from tune.chain_cost import Costs
from tune.chains import Chain, Mix, Slices, judge_chain, order_ranks, plain_query, score_ranks
from tune.choice import Option, alone, chosen, whole_list_ndcg
from tune.mixes import MixPlan
from tune.objective import Objective
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


def test_mixes_are_compared_by_the_place_in_the_whole_list() -> None:
    found = whole_list_ndcg(np.array([1.0, 3.0, np.inf, 127.0]))
    assert found == pytest.approx([1.0, 0.5, 0.0, 1 / 7])


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


@pytest.mark.parametrize(
    ("mix", "limit"),
    [
        ((("item_knn", 30), ("ease", 20), ("popularity", 10)), 40),
        ((("ease", 5),), 40),
        ((("popularity", 40), ("item_knn", 3)), 12),
    ],
)
def test_a_table_says_of_each_mix_what_asking_its_sources_would(mix: Mix, limit: int) -> None:
    items, slices, values = world()
    whole = slices.interactions
    models = {name: make(name).fit(whole.first(int(slices.validation[0])), items) for name in values}
    sources: dict[str, Source] = {name: source_of(model) for name, model in models.items()}
    spec = make_spec(items, [name for name, _ in mix])
    content = ItemFeatures.of(spec, items)
    table = CaseTable.of(sources, slices, slices.validation, make_spec(items, list(sources)), content, 40)
    wanted = training_examples(
        lambda query: retrieve(sources, query),
        whole,
        slices.validation,
        spec=spec,
        items=content,
        statistics=ItemStatistics.of(whole, spec.half_lives_days, as_of=int(whole.times[slices.validation[0]])),
        mix=mix,
        limit=limit,
    )
    found = table.examples(mix, limit, spec)
    np.testing.assert_array_equal(found.offsets, wanted.offsets)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.features, wanted.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table.ranks(mix, limit), order_ranks(wanted))
    assert np.isfinite(table.ranks(mix, limit)).any()
    few = np.array([3, 1])
    np.testing.assert_array_equal(table.some(few).ranks(mix, limit), order_ranks(wanted)[few])


def assembled(
    slices: Slices | None = None, names: Sequence[str] | None = None, **more: Any
) -> tuple[Assembled, dict[str, CandidateModel], list[str], list[str]]:
    """What is chosen in the small world; its models, what was fitted earlier, and what was said to be likely."""
    items, given_slices, values = world()
    slices, values = slices or given_slices, {name: values[name] for name in names or values}
    whole = slices.interactions
    models = {name: make(name).fit(whole.first(int(slices.validation[0])), items) for name in values}
    asked, hoped = list[str](), list[str]()

    def earlier(families: Sequence[str]) -> dict[str, CandidateModel]:
        asked.extend(families)
        return {name: make(name).fit(whole.first(int(slices.ranker[0])), items) for name in families}

    given: dict[str, Any] = {
        "earlier": earlier,
        "metric": "ndcg_at_10",
        "candidates": 40,
        "seed": 0,
        "likely": hoped.extend,
    }
    return assemble(models, values, items, slices, **(given | more)), models, asked, hoped


def test_what_is_chosen_is_measured_as_a_bundle_would_be() -> None:
    items, slices, _ = world()
    whole = slices.interactions
    found, models, asked, hoped = assembled()
    assert {row["stage"] for row in found.ablation if row["kind"] == "alone"} == {
        "item_knn alone",
        "ease alone",
        "content alone",
        "popularity alone",
    }
    assert [row["kind"] for row in found.ablation].count("chain") == 1
    names = [name for name, _ in found.chain.mix]
    assert set(names) <= set(hoped) <= set(asked)
    if found.chain.ranker is not None:
        assert found.examples is not None
        assert len(found.examples) == len(slices.ranker) + len(slices.validation)
    again = judge_chain(
        found.chain,
        {name: source_of(model) for name, model in models.items()},
        ItemStatistics.of(whole, found.chain.spec.half_lives_days, as_of=int(whole.times[slices.validation[0]])),
        ItemFeatures.of(found.chain.spec, items),
        whole,
        slices.validation,
        200,
    )
    np.testing.assert_array_equal(again.ranks, found.evaluation.ranks)
    repeated = assembled()[0]
    assert repeated.ablation == found.ablation
    assert repeated.chain.mix == found.chain.mix


def test_without_rankers_nothing_is_fitted_for_them() -> None:
    found, _, asked, _ = assembled(rankers=RankerPlan(kinds=()))
    assert not asked
    assert found.chain.ranker is None
    assert found.examples is None
    assert not [row for row in found.ablation if "ranked (" in row["stage"]]


def test_what_serving_costs_is_taken_off() -> None:
    objective = Objective(latency_ms=0.01, megabyte=0.5)
    costs = Costs(objective, {"ease": 2.0, "item_knn": 1.0}, {"ease": 4_000_000}, ranker_ms=3.0)
    mix = (("ease", 100), ("item_knn", 60), ("popularity", 20))
    assert costs.of(mix) == pytest.approx(0.01 * 3 + 0.5 * 4)
    assert costs.of(mix, ranked=True) == pytest.approx(0.01 * 6 + 0.5 * 4)
    assert Costs().of(mix, ranked=True) == 0.0
    dear = Costs(Objective(latency_ms=1000.0), dict.fromkeys(world()[2], 0.1))  # the ranker is measured
    found = assembled(costs=dear)[0]
    assert found.chain.ranker is None
    assert {name for name, _ in found.chain.mix} == {"content", "popularity"}  # those that always stay


def test_where_no_source_finds_anything_the_best_alone_is_taken() -> None:
    _, slices, _ = world()
    whole = slices.interactions
    items = whole.items.copy()
    items[slices.validation] = 59  # an item of none of the events that sources learn from, and of no genre of theirs
    lost = replace(slices, interactions=replace(whole, items=items))
    found = assembled(slices=lost, names=("item_knn", "popularity"))[0]
    assert found.chain.mix == (("item_knn", 100), ("popularity", 1))
    assert found.chain.ranker is None
    assert found.evaluation.metrics["hit_rate_at_50"] == 0.0


def test_a_ranker_learns_from_the_log_where_there_is_one() -> None:
    asked: list[tuple[int, int | None]] = []
    _, slices, _ = world()
    before = int(slices.interactions.times[slices.validation[0]])

    def logged(names: tuple[str, ...], before_ms: int | None) -> Examples | None:
        """80 answers of four items; the click is on what is named first."""
        asked.append((len(names), before_ms))
        rows = np.random.default_rng(0).normal(size=(320, len(names))).astype(np.float32)
        found = Examples.of_targets(rows, np.arange(0, 321, 4), np.zeros(80, np.int64))
        return replace(found, objectives=("click",), positions=np.tile(np.arange(1, 5, dtype=np.int32), 80))

    def stages(plan: RankerPlan) -> list[str]:
        found = assembled(rankers=plan, logged=logged)[0]
        return [row["stage"] for row in found.ablation if "ranked (" in row["stage"]]

    of_log = stages(RankerPlan(kinds=("network", "lightgbm"), examples="log"))
    assert any("ranked (network, log)" in stage for stage in of_log)
    assert any("ranked (lightgbm, log)" in stage for stage in of_log)
    assert {time for _, time in asked} <= {before, None}
    of_few = stages(RankerPlan())
    assert of_few  # 80 answers say less than as many events
    assert all("(network, next events)" in stage for stage in of_few)
    asked.clear()
    assert all("(network, next events)" in stage for stage in stages(RankerPlan(examples="next")))
    assert not asked


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

    def option(name: str, ranks: np.ndarray, cost: float = 0.0, *more: str) -> Option:
        mix = tuple((one, 1) for one in (name, *more))
        return Option(Chain(mix, 10, None, spec), evaluated(ranks, users), cost)

    def ranked(found: Evaluation, *sources: str) -> Option:
        return Option(Chain(tuple((one, 1) for one in sources), 10, NetworkRanker(("a",)), spec), found, 0.0, "log")

    simple = option("simple", np.where(some, 3.0, np.inf))
    lucky = option("lucky", np.where((some | (users == 1)) & (users > 0), 3.0, np.inf))  # better for one user
    clear = option("clear", np.where(some, 1.0, np.inf))
    worse = option("worse", np.full(len(users), np.inf))
    assert chosen([simple, lucky, worse], "ndcg_at_10") is simple
    assert chosen([simple, clear, lucky], "ndcg_at_10") is clear
    helps = ranked(lucky.evaluation, "simple")  # the final one learns from more
    assert chosen([simple, helps], "ndcg_at_10") is helps
    assert chosen([helps, simple], "ndcg_at_10") is helps
    hurts = ranked(worse.evaluation, "simple")
    assert chosen([simple, hurts], "ndcg_at_10") is simple
    again = ranked(simple.evaluation, "simple")
    assert chosen([again, ranked(lucky.evaluation, "simple", "more")], "ndcg_at_10") is again
    dear = option("dear", np.where(some, 1.0, np.inf), cost=1.0)
    assert chosen([simple, dear], "ndcg_at_10") is simple


def test_a_budget_ends_the_search_with_what_there_is() -> None:
    found = assembled(mixes=MixPlan(tries=1))[0]
    assert found.search["cut"]
    assert found.chain.mix[0][0] == "item_knn"
    assert not assembled()[0].search["cut"]
