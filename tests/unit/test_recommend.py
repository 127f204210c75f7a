"""The chain as contract.md describes `POST /v1/recommend`, on stages in this process."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.chain.question import stored_entries
from app.errors import NotFound, RequestInvalid
from app.ranking.network import NetworkRanker
from app.recommend import Answer, Request, Scored, in_process, recommend_now, similar, warm_up
from app.settings import Settings
from app.state.memory import MemoryState
from app.surfaces import RuleSettings, SourceSettings, SurfaceSettings
from app.time_to_live import DAY_MS
from tests.unit.chain_world import N_ITEMS, TinyBundle, World, bundle, columns_of, ids_of


@pytest.fixture(scope="module")
def made() -> TinyBundle:
    return bundle()


@pytest.fixture
def world(made: TinyBundle) -> World:
    world = World(made)
    world.click("drama", "i0", "i4", "i8", "i12")
    world.click("horror", "i2", "i6", "i10")
    return world


def genre_share(ids: Sequence[str], genre: str) -> float:
    return float(np.mean([genre in columns_of(int(item[1:]))["genres"] for item in ids]))


def explained(item: Scored) -> dict[str, Any]:
    assert item.explain is not None
    return item.explain


def test_answers_k_items_once_each_and_nothing_consumed(world: World) -> None:
    answer = world.answer(user_id="drama", k=10, request_id="r")
    ids = ids_of(answer)
    assert len(set(ids)) == 10
    assert not {"i0", "i4", "i8", "i12"} & set(ids)
    assert (answer.degraded, answer.degraded_reason, answer.bundle, answer.request_id) == (None, None, "b1", "r")
    assert set(answer.timings_ms) == {"state", "retrieve", "rank", "total"}
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    assert set(answer.body()) == {
        *("request_id", "surface", "variant", "bundle", "degraded", "degraded_reason", "items", "timings_ms")
    }


def test_every_item_knows_its_sources_for_the_impression(world: World) -> None:
    """As `explain` names them, without being asked, and again from the answer cache."""
    told = world.answer(user_id="drama", k=40, explain=True)
    plain = [world.answer(user_id="drama", k=40) for _ in range(2)]
    named = [[source["family"] for source in explained(item)["sources"]] for item in told.items]
    assert all(named)
    for answer in (told, *plain):
        assert [list(item.sources) for item in answer.items] == named
    assert "sources" not in str(plain[0].body())


def test_the_same_items_and_scores_alone_or_in_a_batch(world: World) -> None:
    random = np.random.default_rng(3)
    for user in range(40):
        world.click(f"u{user}", *(f"i{row}" for row in random.integers(0, N_ITEMS, random.integers(1, 30))))
    requests = [Request(user_id=f"u{user}", k=7, exclude=[f"i{user}"]) for user in range(40)]
    requests += [Request(history=["i1", "i5"]), Request(), Request(items=["i3"], user_id="u1")]
    together = world.outcomes(*requests)
    for request, answer in zip(requests, together, strict=True):
        alone = world.outcomes(request)[0]
        assert isinstance(alone, Answer)
        assert isinstance(answer, Answer)
        assert alone.items == answer.items
    shuffled = random.permutation(len(requests))
    again = world.outcomes(*(requests[place] for place in shuffled))
    assert [ids_of(answer) for answer in again] == [ids_of(together[place]) for place in shuffled]


def test_personal_after_the_first_event_and_by_session(world: World) -> None:
    before = world.ids(user_id="new")
    world.click("new", "i2")
    after = world.ids(user_id="new")
    assert "i2" not in after
    assert after != before
    retrieved = World(world.bundle, SurfaceSettings(timeout_ms=10_000, ranked=False))
    retrieved.click("new", "i2", "i6")
    assert genre_share(retrieved.ids(user_id="new"), "Horror") > genre_share(retrieved.ids(), "Horror")
    assert retrieved.ids(user_id="new") == retrieved.ids(history=["i2", "i6"])


def test_every_item_that_passes_is_given_when_k_asks_for_it(world: World) -> None:
    assert set(world.ids(user_id="drama", k=500)) == {f"i{row}" for row in range(N_ITEMS)} - {"i0", "i4", "i8", "i12"}
    assert len(world.ids(k=500)) == N_ITEMS
    assert len(world.ids(user_id="nobody", k=500, filters={"genres": {"any": ["Indie"]}})) == 12


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"year": {"eq": 1975}}, {15}),
        ({"genres": {"all": ["Drama", "Indie"]}}, {0, 20, 40}),
        ({"genres": {"any": ["Horror"]}, "year": {"gte": 2000, "lt": 2011}}, {42, 46, 50}),
        ({"title": {"any": ["Film 7 War", "nothing"]}}, {7}),
        ({"title": {"exists": False}}, set()),
        ({"genres": {"none": ["Drama", "Comedy", "War"]}, "year": {"gt": 2011}}, {54, 58}),
    ],
)
def test_filters_at_any_selectivity(world: World, filters: dict[str, Any], wanted: set[int]) -> None:
    assert set(world.ids(user_id="war", k=20, filters=filters)) == {f"i{row}" for row in wanted}
    assert set(world.ids(candidates=[f"i{row}" for row in range(N_ITEMS)], k=60, filters=filters)) == {
        f"i{row}" for row in wanted
    }


def test_wrong_requests_harm_only_themselves(world: World) -> None:
    outcomes = world.outcomes(
        Request(filters={"colour": {"eq": "red"}}), Request(user_id="drama"), Request(items=["nope"]), Request()
    )
    assert isinstance(outcomes[0], RequestInvalid)
    assert outcomes[0].field == "filters.colour"
    assert isinstance(outcomes[2], NotFound)
    assert all(isinstance(outcomes[place], Answer) for place in (1, 3))
    needy = World(world.bundle, SurfaceSettings(anchor="required"))
    assert isinstance(needy.outcomes(Request())[0], RequestInvalid)


def test_candidates_are_ranked_exactly(world: World) -> None:
    world.put("i7", None)
    named = ["i3", "i4", "i55", "nope", "i7", "i9"]
    assert set(world.ids(user_id="drama", candidates=named, k=10)) == {"i3", "i4", "i55", "i9"}
    assert set(world.ids(user_id="drama", candidates=named, exclude=["i3"], k=10)) == {"i4", "i55", "i9"}
    best = world.ids(user_id="drama", candidates=named, k=2)
    assert best == world.ids(user_id="drama", candidates=named, k=10)[:2]
    assert world.ids(user_id="drama", candidates=["nope"], k=10) == []


def test_anchors_lead_and_are_not_shown(world: World) -> None:
    plain = World(world.bundle, SurfaceSettings(timeout_ms=10_000, ranked=False))
    plain.click("drama", "i0", "i4")
    ids = plain.ids(user_id="drama", items=["i2", "unknown"], k=8)
    assert not {"i2", "i0", "i4"} & set(ids)
    assert genre_share(ids, "Horror") > 0.6
    outcome = plain.outcomes(similar("i2", k=8))[0]
    assert isinstance(outcome, Answer)
    assert genre_share(ids_of(outcome), "Horror") > 0.6
    assert isinstance(plain.outcomes(similar("unknown"))[0], NotFound)


def test_exclude_and_unknown_ids(world: World) -> None:
    first = world.ids(user_id="drama")
    assert not set(first[:3]) & set(world.ids(user_id="drama", exclude=[*first[:3], "unknown"]))
    assert world.ids(history=["unknown", "i2"]) == world.ids(history=["i2"])


def test_a_withdrawn_item_is_gone_and_comes_back(world: World) -> None:
    gone = world.ids(user_id="drama")[0]
    world.put(gone, columns_of(int(gone[1:])))
    world.put(gone, None)
    assert gone not in world.ids(user_id="drama", k=500)
    assert gone not in world.ids(candidates=[gone])
    assert world.ids(items=[gone])  # its page may still be open
    world.put(gone, columns_of(int(gone[1:])))
    assert world.ids(user_id="drama")[0] == gone


def test_more_withdrawn_items_than_are_banned_one_by_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.chain.question.FEW_WITHDRAWN", 3)
    for row in range(0, N_ITEMS, 2):
        world.put(f"i{row}", None)
    assert set(world.ids(user_id="drama", k=500)) == {f"i{row}" for row in range(1, N_ITEMS, 2)}
    assert len(world.ids(user_id="drama", filters={"genres": {"any": ["War"]}}, k=500)) == 15


def test_a_new_item_is_recommended_by_its_content(world: World) -> None:
    world.put("fresh", {"title": "Film Horror", "genres": ["Horror"], "year": 1970, "colour": "red"})
    assert world.ids(user_id="drama", filters={"colour": {"eq": "red"}}) == ["fresh"]
    assert "fresh" in world.ids(k=500)
    assert world.ids(candidates=["fresh"]) == ["fresh"]
    plain = World(world.bundle, SurfaceSettings(timeout_ms=10_000, ranked=False))
    plain.put("fresh", {"title": "Film Horror", "genres": ["Horror"], "year": 1970})
    alike = SurfaceSettings(timeout_ms=10_000, sources=(SourceSettings(family="content", k=20),), ranked=False)
    similar_only = World(world.bundle, alike)
    similar_only.put("fresh", {"title": "Film Horror", "genres": ["Horror"], "year": 1964})
    assert "fresh" in similar_only.ids(history=["i2", "i6"], k=5)
    assert genre_share(plain.ids(items=["fresh"], k=8), "Horror") > 0.6
    plain.click("someone", "fresh")
    assert genre_share(plain.ids(user_id="someone", k=8), "Horror") > 0.6
    assert "fresh" not in plain.ids(user_id="someone", k=500)
    plain.put("fresh", None)
    assert "fresh" not in plain.ids(user_id="horror", k=500)


def test_changed_columns_count_at_once(world: World) -> None:
    assert world.ids(filters={"genres": {"any": ["Western"]}}) == []
    world.put("i9", {"title": "Film 9", "genres": ["Western"], "year": 1969})
    assert world.ids(filters={"genres": {"any": ["Western"]}}) == ["i9"]
    assert "i9" not in world.ids(filters={"genres": {"any": ["Comedy"]}}, k=500)


def test_explain_names_sources_scores_and_rules(world: World) -> None:
    answer = world.answer(user_id="drama", k=60, explain=True)
    sources = [explained(item)["sources"] for item in answer.items]
    assert all(sources)
    assert {vote["family"] for votes in sources for vote in votes} >= {"item_knn", "ials", "content", "popularity"}
    assert all(explained(item)["ranker_score"] == item.score for item in answer.items)
    assert answer.body()["cache_hit"] is False
    kept = world.answer(user_id="drama", candidates=["i4"], explain=True).items[0]
    assert explained(kept)["rules"] == [{"rule": "seen", "effect": "kept: named in candidates"}]


def test_in_process_needs_nothing_but_a_bundle(made: TinyBundle) -> None:
    world = World(made)
    chain = in_process(made, world.surface)
    answers = recommend_now(chain, [Request(history=["i0", "i4"]), Request(user_id="nobody")])
    assert [ids_of(answer) for answer in answers] == [world.ids(history=["i0", "i4"]), world.ids(user_id="nobody")]


def test_a_broken_cache_takes_no_answer_away(made: TinyBundle) -> None:
    class Full:
        def get(self, _key: bytes) -> bytes | None:
            return None

        def put(self, *_: object) -> None:
            raise OSError("no space left")

    assert World(made, answers=Full()).ids(k=5) == World(made).ids(k=5)


def test_surface_settings_choose_sources_rules_and_person(made: TinyBundle) -> None:
    only = SurfaceSettings(timeout_ms=10_000, sources=(SourceSettings(family="popularity", k=20),), ranked=False)
    assert World(made, only).ids(k=5) == [f"i{row}" for row in made.popular[:5]]
    seen = World(made, SurfaceSettings(timeout_ms=10_000, rules=RuleSettings(seen="allowed")))
    seen.click("u", "i0", "i4")
    assert {"i0", "i4"} <= set(seen.ids(user_id="u", k=500))
    public = World(made, SurfaceSettings(timeout_ms=10_000, personal=False, ranked=False))
    public.click("u", "i0")
    assert [item for item in public.ids(k=20) if item != "i0"][:10] == public.ids(user_id="u", k=10)
    light = World(made, SurfaceSettings(timeout_ms=10_000, event_weights={"rating": 1.0}))
    light.click("u", "i0")
    assert "i0" not in light.ids(user_id="u", k=500)


def test_a_view_that_was_left_at_once_counts_no_more_when_the_next_event_comes_also_a_late_one(
    made: TinyBundle,
) -> None:
    view = {"view": {"log1p": True, "min_s": 3, "cap_s": 300}}
    world = World(made, SurfaceSettings.model_validate({"timeout_ms": 10_000, "event_weights": view}))

    def weighed() -> list[tuple[str, float]]:
        (stored,) = world.state.histories([("user", "u")])
        rows, entries = stored_entries(world.chain, stored)
        assert len(rows) == len(stored.item_ids)  # all of it is consumed
        ids = [made.catalogue.item_ids[row] for row in entries.rows]
        return [(item, round(weight, 3)) for item, weight in zip(ids, entries.weights.tolist(), strict=True)]

    world.state.add("u", "i0", event_type="view", time_ms=0)
    assert weighed() == [("i0", 1.0)]
    world.state.add("u", "i1", event_type="view", time_ms=60_000)
    assert weighed() == [("i0", 4.111), ("i1", 1.0)]
    world.state.add("u", "i2", event_type="scroll", time_ms=2_000)  # late; without a weight of its own
    assert weighed() == [("i1", 1.0)]
    world.state.add("u", "i3", event_type="view", time_ms=61_000, value=9.0)
    assert weighed() == [("i3", 2.303)]
    gap_ms = int(made.spec.session_gap_s * 1000)
    world.state.add("u", "i4", event_type="view", time_ms=61_000 + gap_ms + 1)
    world.state.add("u", "i5", event_type="view", time_ms=61_000 + 3 * gap_ms)
    assert weighed() == [("i3", 2.303), ("i4", 1.0), ("i5", 1.0)]  # another session ends nothing


@pytest.mark.parametrize("whose", ["surface", "state"])
def test_what_has_expired_is_neither_history_nor_seen_whatever_was_cached(made: TinyBundle, whose: str) -> None:
    class Kept(dict[bytes, bytes]):
        def put(self, key: bytes, value: bytes, _: float) -> None:
            self[key] = value

    surface = SurfaceSettings(timeout_ms=10_000, ttl_days=2 if whose == "surface" else None)
    world = World(made, surface, answers=Kept())
    world.state = MemoryState(Settings.model_validate({"state": {"ttl_days": 2 if whose == "state" else None}}))
    world.chain = replace(world.chain, state=world.state)
    world.click("u", "i0", "i4")  # a second apart
    assert not {"i0", "i4"} & set(world.ids(user_id="u", k=500))
    world.click("other", "i1", start_ms=102 * DAY_MS)  # as old as may be
    assert world.answer(user_id="u", k=500).cache_hit
    world.click("other", "i1", start_ms=102 * DAY_MS + 1)
    after = world.answer(user_id="u", k=500)
    assert not after.cache_hit
    assert {"i0"} == {"i0", "i4"} & set(ids_of(after))
    world.click("other", "i1", start_ms=110 * DAY_MS)
    assert world.ids(user_id="u", k=500) == world.ids(user_id="nobody", k=500)


def test_a_bundle_is_warmed_up_by_asking_all_of_it_and_a_broken_one_harms_nobody(
    made: TinyBundle, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[int] = []

    class Noting(NetworkRanker):
        def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
            rows.append(len(features))
            return super().score(features)

    assert made.ranker is not None
    warm_up(replace(made, ranker=Noting(made.ranker.feature_names)))
    assert sum(rows) > 10
    assert not caplog.records
    warm_up(replace(made, mix=(("nothing of this name", -1),), popular=np.array([10**6], np.int32)))
    assert "could not be warmed up" in caplog.text


@pytest.mark.parametrize(
    ("column", "condition"),
    [
        ("year", {"eq": "1995"}),
        ("year", {"gte": "x"}),
        ("year", {"any": [1995, "1996"]}),
        ("genres", {"gte": 5}),
        ("genres", {"any": [5]}),
        ("title", {"eq": 5}),
    ],
)
def test_an_operand_that_no_value_of_the_column_could_be_is_refused(
    world: World, column: str, condition: dict[str, Any]
) -> None:
    (outcome,) = world.outcomes(Request(filters={column: condition}))
    assert isinstance(outcome, RequestInvalid)
    assert outcome.field == f"filters.{column}.{next(iter(condition))}"


class ClickOrBuy(NetworkRanker):
    """Two objectives: what the first source ranks first is clicked, what it ranks last is bought."""

    def __init__(self, feature_names: tuple[str, ...]) -> None:
        super().__init__(feature_names, objectives=("click", "purchase"))

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        rank = features[:, self.feature_names.index("source_rank:item_knn")]
        return np.stack([rank, 0.1 * (1 - rank)], axis=1)


def test_surfaces_weigh_what_comes_of_a_shown_item(made: TinyBundle) -> None:
    assert made.ranker is not None
    both = replace(made, ranker=ClickOrBuy(made.ranker.feature_names))

    def items(objectives: dict[str, float]) -> list[tuple[str, float]]:
        world = World(both, SurfaceSettings(timeout_ms=10_000, candidates=20, objectives=objectives))
        world.click("u", "i0", "i4")
        return [(item.item_id, item.score) for item in world.answer(user_id="u", k=20).items]

    clicked, bought = items({"click": 1.0}), items({"click": 1.0, "purchase": 20.0})
    probability = dict(clicked)
    assert clicked[0] == (clicked[0][0], 1.0)
    assert {item for item, _ in clicked} == {item for item, _ in bought}
    assert clicked[0][0] == bought[-1][0]
    for item, score in bought:
        assert score == pytest.approx(probability[item] + 20 * 0.1 * (1 - probability[item]))
    assert items({"like": 3.0}) == items({})  # none that it has learned
