"""From the best of each family to one chain: ranks by hand, sources that pay, the same figures by another way."""

import numpy as np

from app.features.items import ItemFeatures
from app.features.statistics import ItemStatistics
from app.models.families import make
from app.models.interactions import Catalogue
from app.ranking.examples import Examples
from app.retrieval.sources import source_of
from tests.unit.chain_world import catalogue, interactions
from tune.assemble import FILLERS, Slices, assemble, both, choose_mix, judge_chain, order_ranks, score_ranks


def examples(*targets: int) -> Examples:
    """Three candidates a case."""
    n = len(targets)
    return Examples(np.zeros((3 * n, 1), np.float32), np.arange(0, 3 * n + 1, 3), np.array(targets, np.int64))


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
    assert set(FILLERS) <= {name for name, _ in mix}
    alone = choose_mix({"popularity": sources["popularity"]}, {"popularity": 0.1}, slices, slices.ranker, 40)
    assert alone == (("popularity", 100),)


def test_what_is_chosen_is_measured_as_a_bundle_would_be() -> None:
    items, slices, values = world()
    fit = slices.interactions.before(int(slices.interactions.times[slices.ranker[0]]))
    models = {name: make(name).fit(fit, items) for name in values}
    found = assemble(models, values, items, slices, metric="ndcg_at_10", candidates=40, seed=0)
    assert found.evaluation.metrics["ndcg_at_10"] == max(
        found.ablation["sources merged"], found.ablation.get("merged and ranked", 0.0)
    )
    assert next(iter(found.ablation)) == "item_knn alone"
    again = judge_chain(
        found.chain,
        {name: source_of(model) for name, model in models.items()},
        ItemStatistics.of(
            slices.interactions,
            found.chain.spec.half_lives_days,
            as_of=int(slices.interactions.times[slices.validation[0]]),
        ),
        ItemFeatures.of(found.chain.spec, items),
        slices.interactions,
        slices.validation,
        200,
    )
    np.testing.assert_array_equal(again.ranks, found.evaluation.ranks)
