"""Features: known values, the same numbers in training and serving, no look at the future, new items."""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BundleError
from app.events.windows import Session, WindowFold
from app.features.items import ItemFeatures
from app.features.session import CurrentSession
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import ON_REQUEST, FeatureContext, feature_names, features, make_spec
from app.models.families import make
from app.models.interactions import Catalogue, Histories, Interactions
from app.ranking.next_events import training_examples
from app.retrieval.query import Candidates, Query
from app.retrieval.sources import retrieve, source_of
from app.settings import LearnSettings
from tests.unit.chain_world import DAY_MS, catalogue, interactions, with_pictures

MIX = (("item_knn", 20), ("popularity", 10))


def column(table: np.ndarray, spec: FeatureSpec, name: str) -> np.ndarray:
    return table[:, feature_names(spec).index(name)]


def small_world() -> tuple[Catalogue, Interactions, FeatureContext]:
    """Four items; user 0 had items 0, 1, 2 a day apart, user 1 had 0 and 1; both sources named some of the rows."""
    genres = pa.array([["A"], ["A", "B"], ["B"], []], pa.list_(pa.string()))
    items = Catalogue.of(["a", "b", "c", "d"], pa.table({"genres": genres, "year": [1990, 2000, None, 2010]}))
    data = Interactions(
        np.array([0, 1, 0, 1, 0], np.int32),
        np.array([0, 0, 1, 1, 2], np.int32),
        np.ones(5, np.float32),
        np.arange(5, dtype=np.int64) * DAY_MS,
        2,
        4,
    )
    spec = make_spec(items, ["x", "y"], also=ON_REQUEST)
    histories = Histories(
        np.array([0, 1], np.int32),
        np.ones(2, np.float32),
        np.array([0, DAY_MS]),
        np.array([0, 2]),
        np.array([6 * DAY_MS]),
    )
    candidates = Candidates(
        np.array([2, 3], np.int32),
        np.array([0, 2]),
        np.array([[4.0, 0.0], [2.0, 3.0]], np.float32),
        np.array([[1, 0], [2, 1]], np.int32),
    )
    statistics = ItemStatistics.of(data, spec.half_lives_days)
    return (
        items,
        data,
        FeatureContext(spec, histories, candidates, ("x", "y"), ItemFeatures.of(spec, items), statistics),
    )


def test_known_values() -> None:
    _, data, context = small_world()
    spec, table = context.spec, features(context.spec, context)
    assert table.shape == (2, len(feature_names(spec)))
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    assert column(table, spec, "source_score:x").tolist() == [1.0, 0.5]
    assert column(table, spec, "source_score:y").tolist() == [0.0, 1.0]
    assert column(table, spec, "source_rank:x") == pytest.approx([1.0, 1 / np.log2(3)])
    assert column(table, spec, "source_named:y").tolist() == [0.0, 1.0]
    assert column(table, spec, "fused_rank") == pytest.approx([10 / 11, 10 / 12 + 10 / 11])
    assert column(table, spec, "content_last") == pytest.approx([np.sqrt(0.5), 0.0])  # {B} against {A, B}; nothing
    assert column(table, spec, "count_log") == pytest.approx([np.log(2), 0.0])
    days = (6 * DAY_MS - 4 * DAY_MS) / DAY_MS
    assert column(table, spec, "item_age") == pytest.approx([np.log1p(days), 0.0])
    assert column(table, spec, "history_length") == pytest.approx([np.log(3)] * 2)
    assert column(table, spec, "idle_time") == pytest.approx([np.log1p(5 * 24 * 60)] * 2)
    assert column(table, spec, "years_old")[0] == 0.0  # no year
    assert column(table, spec, "years_old")[1] == -1.0  # 1970 against 2010, clipped
    follow = column(table, spec, "follows_last")
    assert follow[0] == pytest.approx(1 / np.sqrt(3 * 2))  # 2 came right after 1 once; 1 has 2 events, 2 has 1
    assert follow[1] == 0.0
    assert len(data) == 5


def test_sources_that_were_not_asked_are_zero_and_order_does_not_matter() -> None:
    _, _, context = small_world()
    swapped = replace(
        context.candidates, scores=context.candidates.scores[:, ::-1], ranks=context.candidates.ranks[:, ::-1]
    )
    same = FeatureContext(context.spec, context.histories, swapped, ("y", "x"), context.items, context.statistics)
    assert np.array_equal(features(context.spec, context), features(context.spec, same))
    alone = replace(context.candidates, scores=context.candidates.scores[:, :1], ranks=context.candidates.ranks[:, :1])
    fewer = FeatureContext(context.spec, context.histories, alone, ("x",), context.items, context.statistics)
    assert not column(features(context.spec, fewer), context.spec, "source_score:y").any()


def of_times(entries: list[list[tuple[int, int]]], as_of: int) -> Histories:
    """Histories of (item, second) pairs."""
    flat = [entry for history in entries for entry in history]
    offsets = np.cumsum([0, *(len(history) for history in entries)]).astype(np.int64)
    items, times = (np.array([entry[place] for entry in flat], np.int64) for place in (0, 1))
    ones = np.ones(len(flat), np.float32)
    return Histories(items.astype(np.int32), ones, times * 1000, offsets, np.full(len(entries), as_of * 1000, np.int64))


def test_settings_may_ask_for_every_feature_on_request() -> None:
    learn = LearnSettings.model_validate({"extra_features": ON_REQUEST})
    assert set(ON_REQUEST) <= set(make_spec(Catalogue.of(["a"]), ["x"], also=learn.extra_features).features)
    with pytest.raises(ValueError, match="extra_features"):
        LearnSettings.model_validate({"extra_features": ["fortune"]})


def test_the_current_session_by_hand() -> None:
    items, _, context = small_world()
    spec = make_spec(items, ["x", "y"], also=ON_REQUEST).model_copy(update={"session_gap_s": 60.0})
    # 0 is another session; then three entries of two items, the last one just within the gap; nobody; one entry
    histories = of_times([[(3, 0), (0, 100), (1, 130), (1, 190)], [], [(2, 5)]], as_of=251)
    rows = Candidates(
        np.array([2, 3, 2, 3, 2, 3], np.int32),
        np.array([0, 2, 4, 6]),
        np.ones((6, 2), np.float32),
        np.ones((6, 2), np.int32),
    )
    statistics = context.statistics
    table = features(spec, FeatureContext(spec, histories, rows, ("x", "y"), context.items, statistics))
    assert column(table, spec, "session_events") == pytest.approx(np.log1p([3, 3, 0, 0, 1, 1]))
    assert column(table, spec, "session_minutes") == pytest.approx(np.log1p([1.5, 1.5, 0, 0, 0, 0]))
    assert column(table, spec, "session_distinct") == pytest.approx([2 / 3, 2 / 3, 0, 0, 1, 1])
    # of {A}, {A, B}, {A, B}: two share B with item 2 (genre B), none with item 3 (without a genre); A is the commonest
    assert column(table, spec, "session_shared") == pytest.approx([2 / 3, 0, 0, 0, 1, 0])
    assert column(table, spec, "session_dominant").tolist() == [0, 0, 0, 0, 1, 0]
    assert column(table, spec, "session_silence") == pytest.approx(np.log1p([61, 61, 0, 0, 246, 246]))
    assert not column(table, spec, "session_open").any()  # 61 s of silence
    later = replace(histories, as_of=histories.as_of + 10**9)
    moved = features(spec, FeatureContext(spec, later, rows, ("x", "y"), context.items, statistics))
    for name in ("session_events", "session_minutes", "session_distinct", "session_shared", "session_dominant"):
        assert np.array_equal(column(table, spec, name), column(moved, spec, name)), name


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), max_size=9), min_size=1, max_size=4),
    st.integers(0, 90),
)
def test_the_current_session_is_the_last_session_window(entries: list[list[tuple[int, int]]], gap: int) -> None:
    """As windows over the log have it, and of a batch what each history alone has."""
    histories = of_times([sorted(history, key=lambda entry: entry[1]) for history in entries], as_of=400)
    found = CurrentSession.of(histories, gap)
    fold = WindowFold(Session(gap * 1000), ["history"], allowed_lateness_us=10**9)
    fold.add(pa.table({"history": histories.owner, "event_time": histories.times}))
    windows = fold.finish().sort_by([("start", "ascending")]).to_pylist() if len(histories.items) else []
    for number in range(len(histories)):
        last = next((window for window in reversed(windows) if window["history"] == number), None)
        assert found.events[number] == (last["count"] if last else 0)
        if last:
            length = (last["end"] - last["start"]).total_seconds() * 1e6 - gap * 1000
            assert found.minutes[number] == pytest.approx(length / 60_000)
        alone = CurrentSession.of(histories.slice(number, number + 1), gap)
        assert (alone.events[0], alone.distinct[0]) == (found.events[number], found.distinct[number])
        assert alone.items.tolist() == found.items[found.owner == number].tolist()


def test_the_future_changes_nothing() -> None:
    data = interactions()
    spec = make_spec(catalogue(), [name for name, _ in MIX])
    until = int(data.times[300])
    told = ItemStatistics.of(data, spec.half_lives_days, until)
    late = data.times >= until
    injected = replace(
        data,
        items=np.where(late, 7, data.items).astype(np.int32),
        weights=np.where(late, 1e6, data.weights).astype(np.float32),
    )
    other = ItemStatistics.of(injected, spec.half_lives_days, until)
    assert told.as_of == other.as_of == until
    for name in ("table", "first", "follow_indptr", "follow_items", "follow_scores"):
        assert np.array_equal(getattr(told, name), getattr(other, name)), name
    with pytest.raises(ValueError, match="none later than the first case"):
        training_examples(
            lambda _: pytest.fail("not asked"),
            data,
            np.array([100]),
            spec=spec,
            items=ItemFeatures.of(spec, catalogue()),
            statistics=told,
            mix=MIX,
            limit=20,
        )


def test_training_and_serving_give_the_same_numbers() -> None:
    items, data = with_pictures(catalogue()), interactions()
    cut = 360
    fit = data.before(int(data.times[cut]))
    sources = {name: source_of(make(name).fit(fit, items)) for name, _ in MIX}
    spec = make_spec(items, [name for name, _ in MIX], also=ON_REQUEST)
    statistics, content = ItemStatistics.of(fit, spec.half_lives_days), ItemFeatures.of(spec, items)
    cases = np.arange(cut, len(data), 7)
    examples = training_examples(
        partial(retrieve, sources),
        data,
        cases,
        spec=spec,
        items=content,
        statistics=statistics,
        mix=MIX,
        limit=20,
        history_limit=5,
        batch=4,
    )
    assert len(examples) == len(cases)
    assert column(examples.features, spec, "vector_recent:picture").std() > 0.1
    for number, case in enumerate(cases.tolist()):  # one question at a time, as a lone request would be served
        mine = np.flatnonzero(data.users[:case] == data.users[case])
        history = Histories(
            data.items[mine], data.weights[mine], data.times[mine], np.array([0, len(mine)]), data.times[[case]]
        )
        query = Query(
            history.last(5),
            history.items,
            history.offsets,
            np.empty((0, data.n_items), np.bool_),
            np.full(1, -1, np.int32),
            MIX,
            20,
        )
        found = retrieve(sources, query)
        table = features(
            spec, FeatureContext(spec, history.last(5), found, [n for n, _ in MIX], content.copy(), statistics)
        )
        rows = slice(examples.offsets[number], examples.offsets[number + 1])
        assert np.allclose(examples.features[rows], table, atol=1e-6)
        target = np.flatnonzero(found.rows == data.items[case])
        assert examples.targets[number] == (target[0] if len(target) else -1)
        assert not np.isin(found.rows, data.items[mine]).any()


def test_items_that_came_later_have_content_but_no_statistics() -> None:
    items, _, context = small_world()
    live = context.items.copy()
    live.put_many([5, 4], [{"genres": ["B", "unheard of"], "year": "wrong"}, {"genres": None}])
    assert len(context.items) == len(items)
    late = replace(context.candidates, rows=np.array([5, 4], np.int32))
    spec = context.spec
    table = features(spec, FeatureContext(spec, context.histories, late, ("x", "y"), live, context.statistics))
    assert column(table, spec, "content_last") == pytest.approx([np.sqrt(0.5), 0.0])
    for name in ("count_log", "mean_weight", "item_age", "follows_last", "number:year"):
        assert not column(table, spec, name).any(), name
    anchored = Histories.of_lists([[5]], as_of=6 * DAY_MS)  # a history of a new item
    table = features(spec, FeatureContext(spec, anchored, late, ("x", "y"), live, context.statistics))
    assert column(table, spec, "content_last") == pytest.approx([1.0, 0.0])


def test_empty_histories_and_no_candidates() -> None:
    _, _, context = small_world()
    spec = context.spec
    nobody = Histories.of_lists([[]], as_of=DAY_MS)
    table = features(
        spec, FeatureContext(spec, nobody, context.candidates, ("x", "y"), context.items, context.statistics)
    )
    for name in ("history_length", "idle_time", "content_recent", "follows_recent", "popularity_distance"):
        assert not column(table, spec, name).any(), name
    none = Candidates(
        np.empty(0, np.int32), np.zeros(2, np.int64), np.empty((0, 2), np.float32), np.empty((0, 2), np.int32)
    )
    table = features(spec, FeatureContext(spec, nobody, none, ("x", "y"), context.items, context.statistics))
    assert table.shape == (0, len(feature_names(spec)))


def test_user_columns_and_context_that_the_spec_names() -> None:
    items, _, context = small_world()
    spec = make_spec(items, ["x", "y"], user_numbers=["age"], context_numbers=["hour"])
    given = FeatureContext(
        spec,
        context.histories,
        context.candidates,
        ("x", "y"),
        context.items,
        context.statistics,
        user_columns=[{"age": 30}],
        context=[{"hour": "late"}],
    )
    table = features(spec, given)
    assert column(table, spec, "user:age").tolist() == [30.0, 30.0]
    assert not column(table, spec, "context:hour").any()


def test_spec_follows_the_columns_of_any_catalogue() -> None:
    columns = pa.table(
        {
            "brand": [f"brand {row % 3}" for row in range(200)],
            "text": [f"text {row}" for row in range(200)],
            "tags": pa.array([[f"tag {row}", "all"] for row in range(200)], pa.list_(pa.string())),
            "price": [float(row) for row in range(200)],
            "constant": [1] * 200,
            "sold": [row % 2 == 0 for row in range(200)],
        }
    )
    spec = make_spec(Catalogue.of([str(row) for row in range(200)], columns), ["x"])
    assert [c.name for c in spec.terms] == ["brand", "tags"]
    assert spec.width == 64
    assert "all" in spec.terms[1].terms
    assert [c.name for c in spec.numbers] == ["price", "sold"]
    assert spec.year == ""
    bare = make_spec(Catalogue.of(["a"]), ["x"])
    assert "content_last" not in feature_names(bare)
    unknown = spec.model_copy(update={"features": ("fortune",)})
    with pytest.raises(BundleError, match=r"found features \['fortune'\]"):
        feature_names(unknown)
