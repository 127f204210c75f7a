"""Examples from histories: nothing of the future in them, statistics as of the event, the same in any batch."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from app.features.items import ItemFeatures
from app.features.statistics import ItemStatistics
from app.features.table import ON_REQUEST, feature_names, make_spec
from app.models.families import make
from app.models.interactions import Interactions
from app.ranking.examples import NEXT, Examples
from app.ranking.next_events import HOUR_MS, MOST_STEPS, statistics_steps, told_apart, training_examples
from app.retrieval.sources import Source, retrieve, source_of
from tests.unit.chain_world import catalogue, interactions

MIX = (("item_knn", 20), ("popularity", 10))
SPEC = make_spec(catalogue(), [name for name, _ in MIX], also=ON_REQUEST)
FIRST = 300  # events before it fit the sources
CASES = np.arange(FIRST, 480, 2)
Steps = Iterable[tuple[int, ItemStatistics]]


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    early = interactions().first(FIRST)
    return {name: source_of(make(name).fit(early, catalogue())) for name, _ in MIX}


def examples(
    data: Interactions, sources: dict[str, Source], statistics: Steps, batch: int = 64, **more: Any
) -> Examples:
    return training_examples(
        partial(retrieve, sources),
        data,
        CASES,
        spec=more.pop("spec", SPEC),
        items=ItemFeatures.of(SPEC, catalogue()),
        statistics=statistics,
        mix=MIX,
        limit=25,
        batch=batch,
        **more,
    )


def as_of(data: Interactions) -> Steps:
    return statistics_steps(data, CASES, SPEC.half_lives_days, age_h=6)


def leaking(data: Interactions) -> Steps:
    """What a careless definition would do: everything counted, whenever it happened."""
    counted = ItemStatistics.of(data, SPEC.half_lives_days)
    yield len(CASES), replace(counted, as_of=int(data.times[CASES[0]]))


def difference(sources: dict[str, Source], statistics: Callable[[Interactions], Steps], known: int) -> float:
    """How far the features of the first `known` cases move when all that comes after the last of them is changed."""
    data = interactions()
    late = np.arange(len(data)) > CASES[known - 1]
    injected = replace(
        data,
        users=np.where(late, 3, data.users).astype(np.int32),
        items=np.where(late, 7, data.items).astype(np.int32),
        weights=np.where(late, 1e6, data.weights).astype(np.float32),
        times=np.where(late, data.times + 10**9, data.times),
    )
    told, other = (examples(one, sources, statistics(one)).slice(0, known) for one in (data, injected))
    assert np.array_equal(told.offsets, other.offsets)
    assert np.array_equal(told.labels, other.labels)
    return float(np.abs(told.features - other.features).max())


@pytest.mark.parametrize("known", [1, 30, 77])
def test_an_injected_future_is_not_seen(sources: dict[str, Source], known: int) -> None:
    assert difference(sources, as_of, known) == 0.0
    assert difference(sources, leaking, known) > 0.1  # and this test would say so


def test_statistics_are_as_of_the_cases() -> None:
    data = interactions()
    found = list(as_of(data))
    assert [stop for stop, _ in found][-1] == len(CASES)
    assert 5 < len(found) <= MOST_STEPS
    start = 0
    for stop, counted in found:
        times = data.times[CASES[start:stop]]
        assert counted.as_of <= times[0]
        assert times[-1] - counted.as_of < 48 * HOUR_MS
        direct = ItemStatistics.of(data.before(counted.as_of), SPEC.half_lives_days, as_of=counted.as_of)
        np.testing.assert_array_equal(counted.table, direct.table)
        start = stop
    (whole,) = statistics_steps(data, CASES, SPEC.half_lives_days)
    assert (whole[0], whole[1].as_of) == (len(CASES), int(data.times[FIRST]))
    assert list(statistics_steps(data, CASES[:0], SPEC.half_lives_days)) == []


def test_only_statistics_that_follow_change_what_later_cases_see(sources: dict[str, Source]) -> None:
    data = interactions()
    frozen = examples(data, sources, statistics_steps(data, CASES, SPEC.half_lives_days))
    following = examples(data, sources, as_of(data))
    moved = np.flatnonzero(np.abs(frozen.features - following.features).max(axis=0) > 0.01)
    names = {feature_names(SPEC)[place] for place in moved}
    assert "count_7d" in names
    assert not {name for name in names if name.startswith(("source_", "content", "number"))}
    early = frozen.slice(0, 4).features
    np.testing.assert_array_equal(early, following.slice(0, 4).features)


def test_batches_and_parts_do_not_matter(sources: dict[str, Source]) -> None:
    data = interactions()
    one, many = examples(data, sources, as_of(data), batch=7), examples(data, sources, as_of(data))
    np.testing.assert_allclose(one.features, many.features, atol=1e-6)
    assert np.array_equal(one.labels, many.labels)
    assert 0 < (one.targets >= 0).sum() < len(CASES)
    drawn = [many.thinned(5, np.random.default_rng(seed)).features for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not np.array_equal(drawn[0], drawn[2])


def test_columns_of_users_are_features_of_their_cases(sources: dict[str, Source]) -> None:
    data = interactions()
    spec = SPEC.model_copy(update={"user_numbers": ("age",)})
    columns = [None if user % 7 == 0 else {"age": 20 + user} for user in range(data.n_users)]
    found = examples(data, sources, as_of(data), spec=spec, user_columns=columns)
    ages = found.features[:, feature_names(spec).index("user:age")]
    users = data.users[CASES][found.owner]
    assert ages.tolist() == np.where(users % 7 == 0, 0, 20 + users).tolist()


def test_objectives_of_next_events_by_their_type(sources: dict[str, Source]) -> None:
    kinds = (np.arange(480) % 3).astype(np.uint8)  # the cases are every other event: each type is a third of them
    data = replace(interactions(), kinds=kinds, kind_names=("view", "click", "order"))
    wanted = {
        "click": ["click"],
        "purchase": ["purchase", "order"],
        "any": ["view", "click", "order"],
        "like": ["like"],
    }
    objectives = told_apart(data, CASES, wanted, 20)
    assert list(objectives) == ["click", "purchase"]  # nothing was liked, and `any` is what NEXT says
    assert told_apart(data, CASES, wanted, 31) == {}
    assert told_apart(interactions(), CASES, wanted, 1) == {}  # nobody knows of what type they were
    found = examples(data, sources, as_of(data), objectives=objectives)
    plain = examples(data, sources, as_of(data))
    assert found.objectives == (NEXT, "click", "purchase")
    assert np.array_equal(found.targets, plain.targets)
    for column, kind in ((1, 1), (2, 2)):
        mine = kinds[CASES][found.owner] == kind
        assert np.array_equal(found.labels[:, column], plain.labels[:, 0] * mine)
        assert found.labels[:, column].sum() > 3
    some = data.some(kinds == 1)
    assert some.kinds is not None
    assert set(some.kinds.tolist()) == {1}
