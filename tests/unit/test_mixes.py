"""The search for a mix on made-up sources of known worth, and the linear ranker that stands in for the real one."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from app.ranking.examples import Examples
from tune.chains import Mix
from tune.linear_ranker import LinearRanker
from tune.mixes import FILLING, LEADING, Judged, MixPlan, MixSearch, simplest

CASES = 400
USERS = np.repeat(np.arange(100), 4)
NOISE = np.random.default_rng(0).normal(0, 0.02, CASES)


class Worlds:
    """A case is worth 1 where a source of the mix has it deep enough: `has` says by source (from case, to case, k)."""

    def __init__(self, has: dict[str, tuple[int, int, int]], costs: dict[str, float] | None = None) -> None:
        self.has, self.costs, self.asked = has, costs or {}, list[Mix]()

    def judge(self, mix: Mix) -> Judged:
        self.asked.append(mix)
        worth = np.zeros(CASES)
        for name, k in mix:
            first, last, depth = self.has.get(name, (0, 0, 0))
            if k >= depth:
                worth[first:last] = 1.0
        return Judged(mix, worth, sum(self.costs.get(name, 0.0) for name, _ in mix))

    def found(self, plan: MixPlan = MixPlan()) -> Mix:  # noqa: B008
        return simplest(MixSearch(list(self.has), plan, USERS).run(self.judge), USERS).mix


def test_a_source_that_adds_nothing_is_left_out() -> None:
    world = Worlds({"a": (0, 200, 1), "same": (0, 200, 1), "b": (200, 300, 1), "none": (0, 0, 1)})
    assert world.found() == (("a", 30), ("b", 30))  # and no candidates more than are of use


def test_counts_are_as_deep_as_they_must_be() -> None:
    world = Worlds({"a": (0, 200, 1), "deep": (200, 300, 100), "shallow": (300, 400, 30)})
    found = dict(world.found())
    assert found == {"a": 30, "deep": 100, "shallow": 30} or found == {"a": LEADING, "deep": 100, "shallow": 30}


def test_fillers_stay_whatever_validation_says() -> None:
    world = Worlds({"a": (0, 200, 1), "popularity": (0, 0, 1), "content": (0, 0, 1)})
    assert world.found() == (("a", 30), ("popularity", FILLING), ("content", FILLING))
    useful = Worlds({"a": (0, 200, 1), "content": (200, 300, 60)})
    assert dict(useful.found())["content"] == 60


def test_a_cost_keeps_out_what_is_not_worth_it() -> None:
    has = {"a": (0, 200, 1), "b": (200, 240, 1)}  # b adds .1
    assert len(Worlds(has, {"b": 0.05}).found()) == 2
    assert len(Worlds(has, {"b": 0.15}).found()) == 1
    assert Worlds({"a": (0, 200, 1), "b": (0, 400, 1)}, {"a": 0.9}).found() == (("b", 30),)


def test_the_same_is_found_again_and_a_budget_ends_it() -> None:
    has = {name: (50 * place, 50 * place + 100, 30) for place, name in enumerate("abcdef")}
    first, second = Worlds(has), Worlds(has)
    assert first.found() == second.found()
    assert first.asked == second.asked
    assert len(first.asked) == len(set(first.asked)) <= MixPlan().tries
    few = Worlds(has)
    few.found(MixPlan(tries=3))
    assert few.asked == first.asked[:3]
    hasty = Worlds(has)
    assert hasty.found(MixPlan(budget_s=1e-9)) == (("a", LEADING),)  # one mix is always judged
    assert len(Worlds(has).found(MixPlan(most_sources=2))) <= 2
    with pytest.raises(ValidationError, match="counts"):
        MixPlan(counts=())


def test_the_cheapest_of_what_cannot_be_told_apart() -> None:
    def judged(name: str, k: int, worth: NDArray[np.float64], cost: float = 0.0) -> Judged:
        return Judged(((name, k),), worth, cost)

    base = np.where(np.arange(CASES) % 4 == 0, 0.5, 0.0)
    best, tie, close = (
        judged("a", 100, base),
        judged("b", 30, base),
        judged("c", 20, base + NOISE - NOISE.mean() - 1e-4),
    )
    worse = judged("d", 1, np.maximum(base - 0.1, 0))
    assert simplest([best, tie], USERS) is tie
    assert simplest([tie, best], USERS) is tie
    assert simplest([best, worse], USERS) is best
    assert simplest([best, close, worse], USERS) is close  # 20 candidates, within a standard error
    assert simplest([best, judged("e", 10, base, cost=0.2)], USERS) is best


def lists(n: int, seed: int) -> Examples:
    """Five candidates a case; the one with the largest first feature, less a third of the second, is answered."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(5 * n, 3)).astype(np.float32) * np.array([1, 10, 0], np.float32) + 5
    worth = (features[:, 0] - features[:, 1] / 30 + random.gumbel(0, 0.5, 5 * n)).reshape(n, 5)
    return Examples.of_targets(features, np.arange(0, 5 * n + 1, 5), worth.argmax(axis=1))


def test_the_linear_ranker_finds_the_weights_that_made_the_choices() -> None:
    ranker = LinearRanker.fitted(lists(2000, 0), seed=0)
    weights = ranker.weights * ranker.scale
    assert weights[2] == 0  # a constant says nothing
    assert weights[0] == pytest.approx(1 / 0.5, rel=0.15)  # the logit's slope is one over the noise
    assert weights[1] / weights[0] == pytest.approx(-1 / 30, rel=0.2)
    fresh = lists(500, 1)
    picked = ranker.score(fresh.features).reshape(-1, 5).argmax(axis=1)
    assert (picked == fresh.targets).mean() > 0.5
    np.testing.assert_array_equal(LinearRanker.fitted(lists(2000, 0), seed=0).weights, ranker.weights)


def test_a_linear_ranker_of_nothing_leaves_the_order() -> None:
    none = Examples.of_targets(np.ones((6, 2), np.float32), np.array([0, 3, 6]), np.array([-1, -1]))
    assert LinearRanker.fitted(none, seed=0).score(none.features).tolist() == [0.0] * 6
