"""Sources, merge, index and filters against their plain definitions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import RequestInvalid
from app.models.families import make
from app.models.interactions import Catalogue, Histories
from app.retrieval.allowed import Allowed, best
from app.retrieval.catalogue import LiveCatalogue
from app.retrieval.columns import column_of
from app.retrieval.conditions import passes
from app.retrieval.filters import Filters
from app.retrieval.index import VectorIndex, build_index
from app.retrieval.merge import DAMPING, Addition, Found, extend, merge
from app.retrieval.query import Query
from app.retrieval.sources import retrieve, source_of
from app.state.reader import ItemChange
from tests.unit.chain_world import N_ITEMS, catalogue, interactions

HISTORIES = Histories.of_lists([[0, 4, 8], [], [2, 6, 59, 3, 3], [70]], as_of=10**12)


def query(
    banned: Sequence[Sequence[int]] = (),
    masks: Sequence[NDArray[np.bool_]] = (),
    mask_of: Sequence[int] | None = None,
    mix: tuple[tuple[str, int], ...] = (("x", 10),),
    limit: int = 50,
) -> Query:
    lists = [list(one) for one in banned] or [[]] * len(HISTORIES)
    return Query(
        HISTORIES,
        np.array([row for one in lists for row in one], np.int32),
        np.cumsum([0, *map(len, lists)]).astype(np.int64),
        np.array(masks, np.bool_).reshape(-1, N_ITEMS),
        np.array(mask_of if mask_of is not None else [-1] * len(HISTORIES), np.int32),
        mix,
        limit,
    )


@pytest.mark.parametrize(
    "family",
    ["popularity", "item_knn", "session_knn", "ease", "seq_ridge", "graph_filter", "ials", "content", "blend"],
)
def test_every_kind_of_source_gives_the_models_own_best(family: str) -> None:
    params = {"parts": ["ease", "item_knn"]} if family == "blend" else {}
    model = make(family, params).fit(interactions(), catalogue())
    mask = np.arange(N_ITEMS) % 3 != 0
    asked = query([[1, 5, 99], [0], [], []], [mask], [-1, 0, 0, -1])
    found = source_of(model).search(HISTORIES, 10, Allowed.of(asked))
    scores = model.score(HISTORIES)
    for place, (rows, values) in enumerate(found):
        allowed = np.ones(N_ITEMS, np.bool_) if asked.mask_of[place] < 0 else mask.copy()
        banned = asked.banned[asked.banned_offsets[place] : asked.banned_offsets[place + 1]]
        allowed[banned[banned < N_ITEMS]] = False
        assert allowed[rows].all()
        np.testing.assert_allclose(values, scores[place][rows], rtol=2e-3, atol=1e-5)
        wanted = np.sort(scores[place][allowed])[::-1][: len(rows)]
        np.testing.assert_allclose(values, wanted, rtol=2e-3, atol=1e-5)
        if len(rows) < 10:  # nothing that speaks for an item was left out
            assert (wanted[len(rows) :] <= 0).all()


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0]) | st.floats(-3, 3, width=32), max_size=5000),
    st.integers(1, 40),
    st.sampled_from([0.0, -np.inf]),
)
@settings(max_examples=60, deadline=None)
def test_best_is_exact_with_the_lower_row_among_equals(values: list[float], k: int, above: float) -> None:
    array = np.resize(np.array(values, np.float32), len(values) * 3 if len(values) > 30 else len(values))
    order = [row for row in np.lexsort((np.arange(len(array)), -array)) if array[row] > above]
    assert best(array, k, above).tolist() == order[:k]


def test_best_over_many_rows_equals_a_sort() -> None:
    random = np.random.default_rng(0)
    for values in (random.standard_normal(9000), random.integers(0, 3, 9000), random.random(9000) ** 20):
        array = values.astype(np.float32)
        for k in (1, 10, 100, 300):
            assert best(array, k, 0.0).tolist() == [
                row for row in np.lexsort((np.arange(9000), -array))[:k] if array[row] > 0
            ]


def test_merge_adds_weighted_reciprocal_ranks() -> None:
    def listed(*rows: int) -> Found:
        return np.array(rows, np.int32), np.array([9.0 - place for place in range(len(rows))], np.float32)

    merged = merge([[listed(5, 3), listed()], [listed(3, 8), listed(1)]], (30, 10), limit=2)
    assert merged.rows.tolist() == [3, 5, 1]
    assert merged.offsets.tolist() == [0, 2, 3]
    assert merged.ranks.tolist() == [[2, 1], [1, 0], [0, 1]]
    assert merged.scores.tolist() == [[8, 9], [9, 0], [0, 9]]
    assert 0.75 / (DAMPING + 2) + 0.25 / (DAMPING + 1) > 0.75 / (DAMPING + 1)
    more = extend(merged, [Addition.of(0, {0: (np.array([7], np.int32), np.array([8.5], np.float32))})], (30, 10))
    assert more.rows.tolist() == [3, 5, 7, 1]
    assert more.ranks.tolist() == [[2, 1], [1, 0], [2, 0], [0, 1]]


def test_the_order_of_many_questions_does_not_depend_on_how_it_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    ten = np.arange(10, dtype=np.int32)
    found = [[(random.permutation(ten), np.arange(10, 0, -1, dtype=np.float32)) for _ in range(300)] for _ in range(2)]
    filled = [Addition(place, np.array([20, 15], np.int32)) for place in range(300)]
    packed = extend(merge(found, (3, 2), 8), filled, (3, 2))
    assert packed.offsets.tolist() == list(range(0, 3001, 10))
    assert (packed.rows.reshape(300, 10)[:, 8:] == [20, 15]).all()
    alone = extend(merge([one[7:8] for one in found], (3, 2), 8), [Addition(0, filled[7].rows)], (3, 2))
    assert alone.rows.tolist() == packed.rows[70:80].tolist()
    monkeypatch.setattr("app.retrieval.merge.STEPS", 1 << 58)
    whole = extend(merge(found, (3, 2), 8), filled, (3, 2))
    assert (whole.rows == packed.rows).all()


def test_sources_that_a_bundle_lacks_are_passed_over() -> None:
    model = make("popularity").fit(interactions(), catalogue())
    found = retrieve({"popularity": source_of(model)}, query(mix=(("nope", 5), ("popularity", 5))))
    assert np.diff(found.offsets).tolist() == [5] * len(HISTORIES)
    assert (found.ranks[:, 0] == 0).all()


def test_an_inverted_file_keeps_filters_at_every_selectivity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.retrieval.index.EXACT_ROWS", 1000)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((4000, 16)).astype(np.float32)
    build_index(vectors).save(tmp_path / "index")
    index = VectorIndex.load(tmp_path / "index")
    assert index.index is not None
    queries = random.standard_normal((4, 16)).astype(np.float32)
    for passing in (1, 8, 40, 400, 4000):
        mask = np.zeros(4000, np.bool_)
        mask[random.choice(4000, passing, replace=False)] = True
        allowed = Allowed(np.empty(0, np.int32), np.zeros(5, np.int64), mask[None], np.zeros(4, np.int32))
        for rows, values in index.search(queries, 10, allowed):
            assert len(rows) == min(10, passing)
            assert mask[rows].all()
            assert (np.diff(values) <= 0).all()


VALUES: dict[str, list[Any]] = {
    "terms": [["a", "b"], [], None, ["b"], ["c", "a"]],
    "text": ["x", None, "y", "z", "x"],
    "number": [1.5, None, 3.0, -2.0, 1.5],
    "flag": [True, False, None, True, False],
    "vector": [[1.0, 2.0], None, [3.0], [], [1.0]],
}
OPERANDS = st.sampled_from(["a", "b", "x", "y", 1.5, 3.0, True, 1])
CONDITIONS = st.dictionaries(st.sampled_from(["any", "all", "none"]), st.lists(OPERANDS, max_size=3), max_size=2) | (
    st.dictionaries(st.sampled_from(["eq", "gte", "gt", "lte", "lt"]), OPERANDS, max_size=2)
    | st.fixed_dictionaries({"exists": st.booleans()})
)


@given(st.sampled_from(sorted(VALUES)), CONDITIONS)
@settings(max_examples=300, deadline=None)
def test_columns_agree_with_the_definition(name: str, condition: dict[str, Any]) -> None:
    values = VALUES[name]
    mask = column_of(pa.chunked_array([pa.array(values)])).mask(condition)
    assert mask.tolist() == [passes(condition, value) for value in values]


def test_masks_follow_the_catalogue() -> None:
    live = LiveCatalogue(Catalogue.of(["a", "b"], pa.table({"genre": ["x", "y"]})))
    filters = Filters(live)
    _, mask = filters.mask({"genre": {"eq": "x"}})
    assert mask.tolist() == [True, False]
    assert filters.mask({"genre": {"eq": "x"}})[1] is mask
    assert live.apply([ItemChange(1, "b", True, {"genre": "x"}), ItemChange(2, "c", True, {"genre": "x", "n": 1})])
    assert filters.mask({"genre": {"eq": "x"}})[1].tolist() == [True, True, True]
    assert filters.mask({"n": {"gte": 1}})[1].tolist() == [False, False, True]
    assert not live.apply([ItemChange(3, "b", True, {"genre": "x"})])
    assert live.apply([ItemChange(4, "a", False, {"genre": "x"})])
    assert live.withdrawn.tolist() == [0]
    assert not live.apply([ItemChange(2, "a", True, {})])
    with pytest.raises(RequestInvalid, match="genre, n"):
        filters.mask({"colour": {"eq": "x"}})
    with pytest.raises(RequestInvalid, match=r"filters\.n\.gte"):
        filters.mask({"n": {"gte": None}})


@pytest.mark.parametrize("rows", [1, 17, 291, 8369])
@pytest.mark.parametrize("width", [3, 48, 64, 384])
def test_a_query_scores_the_same_to_the_bit_alone_and_in_a_batch_of_any_size(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows + width)
    index = VectorIndex(rng.standard_normal((rows, width)).astype(np.float32))
    queries = rng.standard_normal((40, width)).astype(np.float32)
    whole = index.scores(queries)
    np.testing.assert_allclose(whole, queries.astype(float) @ index.vectors.astype(float).T, atol=1e-3)
    for count in (1, 2, 3, 5, 8, 9, 33):
        np.testing.assert_array_equal(index.scores(queries[:count]), whole[:count])
    np.testing.assert_array_equal(index.scores(queries[7:8]), whole[7:8])
