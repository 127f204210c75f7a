"""Item columns of vectors: what counts as one, the source, the ranker's feature, items that no event names."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bundles.build import Lineage, write_bundle
from app.bundles.load import load_bundle
from app.errors import MantaError
from app.features.items import ItemFeatures
from app.features.statistics import ItemStatistics
from app.features.table import FeatureContext, feature_names, features, make_spec
from app.models.families import make
from app.models.interactions import Catalogue, Histories
from app.models.vectors import unit_vectors, vector_size
from app.retrieval.query import Candidates
from app.surfaces import SurfaceSettings
from tests.unit.chain_world import DAY_MS, TinyBundle, World, bundle, catalogue, interactions, picture_of, with_pictures

MIX = (("item_knn", 5), ("content", 5), ("vector", 20), ("popularity", 5))


@pytest.fixture(scope="module")
def made() -> TinyBundle:
    return bundle(mix=MIX, items=with_pictures(catalogue()))


@pytest.mark.parametrize(
    ("values", "kind", "size"),
    [
        ([[1, 2, 3], [4, 5, 6], None, [], [7]], pa.list_(pa.float32()), 3),
        ([[1, 2], [3, 4]], pa.list_(pa.int64()), 2),
        ([[1, 2], [3, 4]], pa.large_list(pa.float64()), 2),
        ([[1, 2], None], pa.list_(pa.float32(), 2), 2),
        ([[1], [2]], pa.list_(pa.float32()), 0),  # one number is no vector
        ([[1, 2], [1, 2, 3]], pa.list_(pa.float32()), 0),  # no size is that of most
        ([None, []], pa.list_(pa.float32()), 0),
        ([["a", "b"]], pa.list_(pa.string()), 0),
        ([1.0, 2.0], pa.float32(), 0),
    ],
)
def test_what_a_column_of_vectors_is(values: list[Any], kind: pa.DataType, size: int) -> None:
    assert vector_size(pa.chunked_array([pa.array(values, kind)])) == size


numbers = st.none() | st.floats(width=32) | st.sampled_from([math.nan, math.inf, 0.0, 1e-30, 3e38])


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(numbers, min_size=3, max_size=3) | st.lists(numbers, max_size=4), max_size=12))
def test_arrow_columns_and_values_give_the_same_unit_vectors(values: list[list[float | None] | None]) -> None:
    column = pa.chunked_array(
        [pa.array(values[:5], pa.list_(pa.float64())), pa.array(values[5:], pa.list_(pa.float64()))]
    )
    found = unit_vectors(column, 3)
    assert np.array_equal(found, unit_vectors(values, 3))
    for value, vector in zip(values, found, strict=True):
        plain = None if value is None or len(value) != 3 else np.array([math.nan if x is None else x for x in value])
        if plain is None or not np.isfinite(plain).all() or not plain.any():
            assert not vector.any()
        else:
            wanted = plain / np.abs(plain).max()
            np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_numbers_that_are_no_vector_count_as_missing() -> None:
    odd = ["text", {"a": 1}, [1, "x"], [1, None], (3, 4), [1e308, 1e308], [True, 2]]
    assert np.flatnonzero(unit_vectors(odd, 2).any(axis=1)).tolist() == [4, 5, 6]


def test_a_column_without_vectors_is_named() -> None:
    items = with_pictures(catalogue())
    assert make("vector", {"column": "picture"}).fit(interactions(), items).n_items == len(items)
    with pytest.raises(MantaError, match="column 'year': found int64, wanted lists of numbers"):
        make("vector", {"column": "year"}).fit(interactions(), items)
    with pytest.raises(MantaError, match="column 'pictures': found no such column, wanted lists"):
        make("vector", {"column": "pictures"}).fit(interactions(), items)


def test_an_item_without_events_is_found_by_its_vector(made: TinyBundle) -> None:
    """i50 to i59 have no event; i48 to i51 are of the first group of pictures."""
    world = World(made, SurfaceSettings(timeout_ms=10_000, candidates=50, ranked=False))
    world.click("u", "i1", "i13", "i25")
    found = world.answer(user_id="u", k=30, explain=True).items
    sources = {one.item_id: [source["family"] for source in one.explain["sources"]] for one in found if one.explain}
    assert "vector" in sources["i50"]
    assert "vector" in sources["i51"]
    assert "vector" not in sources.get("i54", [])  # of another group
    vectors = made.models["vector"].score(Histories.of_lists([[1, 13, 25]]))[0]
    assert {row // 4 % 3 for row in np.argsort(-vectors)[:20].tolist()} == {0}


def test_an_item_put_after_the_bundle_is_found_by_its_vector_alone(made: TinyBundle) -> None:
    models = {name: model for name, model in made.models.items() if name != "content"}
    alone = replace(made, models=models, mix=tuple(one for one in MIX if one[0] != "content"))
    world = World(alone, SurfaceSettings(timeout_ms=10_000, candidates=50, ranked=False))
    world.click("u", "i5", "i17", "i29")  # the second group
    world.put("fresh", {"picture": picture_of(1)})
    world.put("other", {"picture": picture_of(2)})
    world.put("narrow", {"picture": picture_of(1)[:3]})
    world.put("broken", {"picture": [0.0, math.nan, 0.0, 0.0]})
    world.put("nothing", {"picture": None})
    found = world.answer(user_id="u", k=20, explain=True).items
    shown = {one.item_id: one.explain for one in found}
    assert not {"other", "narrow", "broken", "nothing"} & set(shown)
    assert shown["fresh"] is not None
    assert [source["family"] for source in shown["fresh"]["sources"]] == ["vector"]
    world.put("fresh", {"picture": picture_of(2)})
    assert "fresh" not in world.ids(user_id="u", k=20)


def test_an_item_that_several_sources_find_is_there_once_with_all_of_them(made: TinyBundle) -> None:
    world = World(made, SurfaceSettings(timeout_ms=10_000, candidates=50, ranked=False))
    world.click("u", "i5", "i17", "i29")
    world.put("both", {"title": "Film Comedy", "genres": ["Comedy"], "picture": picture_of(1)})
    world.put("content", {"title": "Film Comedy", "genres": ["Comedy"]})
    found = world.answer(user_id="u", k=60, explain=True).items
    shown = {one.item_id: [source["family"] for source in one.explain["sources"]] for one in found if one.explain}
    assert len(shown) == len(found)
    assert set(shown["both"]) == {"content", "vector"}
    assert shown["content"] == ["content"]


def test_a_ranked_answer_knows_the_vectors_of_items_that_came_later(made: TinyBundle) -> None:
    world = World(made)
    world.click("u", "i5", "i17")
    world.put("fresh", {"picture": picture_of(1)})
    items = world.target.item_features
    row = world.target.live.row_of["fresh"]
    assert items.vectors[0][row].tolist() == [0, 1, 0, 0]
    assert "fresh" in world.ids(user_id="u", k=40)


def test_the_feature_is_the_similarity_of_candidate_and_history() -> None:
    rows = [[1, 0], [0, 1], [3, 4], None, [1, 0, 0]]
    items = Catalogue.of(list("abcde"), pa.table({"picture": pa.array(rows, pa.list_(pa.float32()))}))
    spec = make_spec(items, ["x"])
    assert [(column.name, column.size) for column in spec.vectors] == [("picture", 2)]
    named = np.zeros((4, 1), np.int32)
    candidates = Candidates(np.array([2, 3, 4, 2], np.int32), np.array([0, 3, 4]), named.astype(np.float32), named)
    histories = Histories.of_lists([[0, 1], []], as_of=DAY_MS)
    statistics = ItemStatistics.of(interactions().first(0), spec.half_lives_days)
    content = ItemFeatures.of(spec, items)
    table = features(spec, FeatureContext(spec, histories, candidates, ("x",), content, statistics))
    names = feature_names(spec)
    early, late = np.exp(-1 / 3), 1.0
    mean = np.array([early, late]) / math.hypot(early, late)
    wanted = [mean @ [0.6, 0.8], 0, 0, 0]
    assert table[:, names.index("vector_recent:picture")] == pytest.approx(wanted)
    assert table[:, names.index("vector_last:picture")] == pytest.approx([0.8, 0, 0, 0])


def test_a_bundle_keeps_its_vectors(made: TinyBundle, tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path,
        bundle_id="b",
        catalogue=made.catalogue,
        models={name: made.models[name] for name, _ in MIX},
        mix=MIX,
        candidates=50,
        ranker=made.ranker,
        spec=made.spec,
        statistics=made.statistics,
        popular=made.popular,
        lineage=Lineage(),
    )
    loaded = load_bundle(folder)
    assert loaded.spec == made.spec
    assert loaded.catalogue.columns.schema.field("picture").type == pa.list_(pa.float32())
    assert np.array_equal(loaded.items.vectors[0], made.items.vectors[0])
    asked = Histories.of_lists([[1, 13], []], as_of=DAY_MS)
    assert np.array_equal(loaded.models["vector"].score(asked), made.models["vector"].score(asked))
