"""What single families promise beyond the contract: closed forms against their formulas, content of new items."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from app.errors import MantaError
from app.models.content import ContentModel, ContentParams
from app.models.ease import Ease, EaseParams
from app.models.history_decay import HistoryDecay, decayed_weights
from app.models.ials import Ials, IalsParams
from app.models.ials_solver import MOST_BUCKETS, Side, alternate
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_knn import ItemKnn, ItemKnnParams
from app.models.popularity import Popularity, PopularityParams
from app.models.sequences import Sequences, newest_first, oldest_first

DAY_MS = 86_400_000


def random_events(n_users: int, n_items: int, n: int, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(n_users * n_items)[:n]
    users, items = (pairs // n_items).astype(np.int32), (pairs % n_items).astype(np.int32)
    return Interactions(users, items, np.ones(n, np.float32), np.arange(n, dtype=np.int64), n_users, n_items)


def dense(data: Interactions) -> np.ndarray:
    users = np.zeros((data.n_users, data.n_items))
    users[data.users, data.items] = 1
    return users


def no_columns(data: Interactions) -> Catalogue:
    return Catalogue.of([str(row) for row in range(data.n_items)])


@pytest.mark.parametrize("sizes", [(8, 20), (40, 12)])
def test_ease_is_its_formula_on_both_sides(sizes: tuple[int, int]) -> None:
    data = random_events(*sizes, 100)
    model = Ease(EaseParams(piece=0, l2=3.0, target_power=0.0, place_tau=0, n_neighbours=100)).fit(
        data, no_columns(data)
    )
    users = dense(data)
    inverse = np.linalg.inv(users.T @ users + 3.0 * np.eye(data.n_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(model.score(data.histories()), users @ weights, atol=1e-4)


def test_ease_refuses_before_any_work_and_says_what_it_needs() -> None:
    n = 100_000
    empty = np.zeros(0, np.int32)
    data = Interactions(empty, empty, empty.astype(np.float32), empty.astype(np.int64), n, n)
    with pytest.raises(MantaError, match=r"12\d\.\d GB.*at most memory_limit_bytes = 4\.0 GB"):
        Ease(EaseParams(piece=0, neighbourhood=0)).fit(data, Catalogue([], pa.table({}), {}))


def test_item_knn_cosine_is_its_formula() -> None:
    data = random_events(30, 10, 120)
    params = ItemKnnParams(window=0, shrink=0, target_power=0.5, place_tau=0, n_neighbours=10)
    model = ItemKnn(params).fit(data, no_columns(data))
    users = dense(data)
    together = users.T @ users
    cosine = together / np.sqrt(np.outer(np.diag(together), np.diag(together)))
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(model.score(data.histories()), users @ cosine, atol=1e-4)


def test_item_knn_windows_count_near_pairs_of_one_user() -> None:
    rows = np.array([0, 3, 1, 2, 3], np.int32)
    data = Interactions(
        np.array([0, 1, 0, 0, 1], np.int32), rows, np.ones(5, np.float32), np.arange(5, dtype=np.int64), 2, 4
    )
    params = ItemKnnParams(window=2, window_tau=1.0, backward=0.0, shrink=0, target_power=0.0, place_tau=0)
    scores = ItemKnn(params).fit(data, no_columns(data)).score(Histories.of_lists([[0], [1], [2], [3]]))
    far = np.exp(-1)
    np.testing.assert_allclose(scores[0], [0, 1 / (1 + far), far / (1 + far), 0], rtol=1e-5)
    np.testing.assert_allclose(scores[1], [0, 0, 1, 0], rtol=1e-5)
    assert not scores[2:].any()  # nothing followed 2, and only itself followed 3


def test_ials_folds_a_history_in_as_the_solver_does() -> None:
    data = random_events(60, 20, 300)
    params = IalsParams(n_factors=6, l2=2.0, alpha=5.0, iterations=3, place_tau=0)
    model = Ials(params).fit(data, no_columns(data), seed=1)
    items = model.item_vectors().astype(np.float64)
    for user, folded in enumerate(model.encode(data.histories())):
        mine = items[data.items[data.users == user]]
        left = items.T @ items + 2.0 * np.eye(6) + 5.0 * mine.T @ mine
        np.testing.assert_allclose(folded, np.linalg.solve(left, 6.0 * mine.sum(axis=0)), rtol=1e-3, atol=1e-4)


def test_popularity_decays_from_the_last_event() -> None:
    times = np.array([0, 9, 10], np.int64) * DAY_MS
    data = Interactions(np.zeros(3, np.int32), np.array([0, 1, 2], np.int32), np.ones(3, np.float32), times, 1, 4)
    scores = Popularity(PopularityParams(half_life_days=1.0)).fit(data, no_columns(data)).item_scores()
    np.testing.assert_allclose(scores, [2**-10, 0.5, 1, 0], rtol=1e-5)


def test_history_decays_by_place_and_age() -> None:
    histories = Histories(
        np.array([1, 2, 99], np.int32),
        np.array([1, 2, 1], np.float32),
        np.array([0, 5, 10], np.int64) * DAY_MS,
        np.array([0, 3], np.int64),
        np.array([10 * DAY_MS], np.int64),
    )
    by_place = decayed_weights(histories, HistoryDecay(place_tau=2.0, place_floor=0.1), 50)
    want = [0.9 * np.exp(-1) + 0.1, 2 * (0.9 * np.exp(-0.5) + 0.1), 0]
    np.testing.assert_allclose(by_place, want, rtol=1e-5)
    by_age = decayed_weights(histories, HistoryDecay(place_tau=0, half_life_days=5.0), 100)
    np.testing.assert_allclose(by_age, [0.25, 1.0, 1.0], rtol=1e-5)


def films() -> tuple[ContentModel, Catalogue]:
    columns = pa.table(
        {
            "title": ["Star Battle", "Star Battle Returns", "Quiet Love", "Love and Tea", None],
            "genres": [["Space", "Action"], ["Space", "Action"], ["Romance"], ["Romance", "Drama"], []],
            "year": [1977, 1980, 1999, 2001, None],
            "picture": [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], None],
            "owner": pa.nulls(5),
        }
    )
    catalogue = Catalogue.of(list("abcde"), columns)
    model = ContentModel().fit(random_events(3, 5, 4), catalogue)
    return model, catalogue


def test_content_places_new_items_beside_their_like(tmp_path: Path) -> None:
    model, catalogue = films()
    np.testing.assert_allclose(model.encode_items(catalogue.columns.to_pylist()), model.item_vectors(), atol=1e-6)
    new: list[dict[str, Any]] = [
        {"title": "Star Fight", "genres": ["Space"], "year": 1979, "picture": [0.8, 0.0], "unknown": 3},
        {"title": 7, "genres": "Romance", "year": "1999", "picture": ["x", None], "owner": {}},
        {"title": None, "year": float("nan"), "picture": [1.0]},
        {},
    ]
    vectors = model.encode_items(new)
    model.save(tmp_path)
    np.testing.assert_array_equal(ContentModel.load(tmp_path).encode_items(new), vectors)
    near = vectors @ model.item_vectors().T
    assert set(np.argsort(-near[0])[:2]) == {0, 1}
    assert set(np.argsort(-near[1])[:2]) == {2, 3}  # a string stands for a list of one; wrong types say nothing
    assert not vectors[2:].any()
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
    assert model.encode_items([]).shape == (0, vectors.shape[1])


def test_content_reduces_many_words() -> None:
    rng = np.random.default_rng(0)
    words = [" ".join(f"w{number}" for number in rng.integers(0, 80, 6)) for _ in range(60)]
    catalogue = Catalogue.of([str(row) for row in range(60)], pa.table({"text": words}))
    model = ContentModel(ContentParams(n_factors=8)).fit(random_events(3, 60, 9), catalogue)
    assert model.item_vectors().shape == (60, 8)
    near = model.encode_items([{"text": words[17]}]) @ model.item_vectors().T
    assert near[0, 17] == pytest.approx(1, abs=1e-5)


def test_sequences_cover_every_target_once() -> None:
    data = random_events(7, 30, 120)
    sequences = Sequences.of(data)
    windows = sequences.windows(5, np.random.default_rng(0))
    rows = sequences.padded(windows, 30)
    assert rows.shape[1] <= 6
    covered = np.concatenate([np.arange(start + 1, end) for start, end in windows])
    np.testing.assert_array_equal(np.sort(covered), sequences.targets)
    before = sequences.before(sequences.targets[-1:], 4, 30)
    mine = data.items[data.users == 6]
    np.testing.assert_array_equal(before[0], mine[-2:-6:-1])


def test_padding_drops_unknown_rows_and_keeps_the_newest() -> None:
    histories = Histories.of_lists([[1, 2, 99, 3], [], [99], [4]])
    assert newest_first(histories, 10, 2).tolist() == [[3, 2], [10, 10], [10, 10], [4, 10]]
    rows, held = oldest_first(histories, 10, 3)
    assert rows.tolist() == [[1, 2, 3], [10, 10, 10], [10, 10, 10], [4, 10, 10]]
    assert held.tolist() == [3, 0, 0, 1]


def test_ease_by_neighbourhoods_is_ease_where_they_hold_everything() -> None:
    data = random_events(300, 20, 4000)  # every item occurs with every other
    exact, local, few = (Ease(EaseParams(neighbourhood=size)).fit(data, no_columns(data)) for size in (0, 19, 6))
    histories = data.histories()
    np.testing.assert_allclose(local.score(histories), exact.score(histories), atol=1e-5)
    assert np.diff(few.neighbours()[0]).sum() == 20 * 6
    assert not np.allclose(few.score(histories), exact.score(histories), atol=1e-3)


def test_ease_explains_items_by_a_neighbourhood_where_all_are_too_many() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(400, dtype=np.int32), 6)
    items = (rng.integers(0, 50, 400).repeat(6) * 6 + np.tile(np.arange(6), 400)).astype(np.int32)  # 50 sets of six
    data = Interactions(users, items, np.ones(2400, np.float32), np.arange(2400), 400, 300)
    model = Ease(EaseParams(memory_limit_bytes=6_000_000)).fit(data, no_columns(data))
    best = np.argsort(-model.score(Histories.of_lists([[12], [13, 14]])), axis=1)[:, :5]
    assert (best // 6 == 2).all()
    with pytest.raises(MantaError, match=r"need 0.0 GB of matrices with a neighbourhood of 200, wanted at most"):
        Ease(EaseParams(memory_limit_bytes=1000)).fit(data, no_columns(data))


def test_ials_weighs_the_regularisation_by_the_events_of_a_user() -> None:
    data = random_events(60, 20, 300)
    params = IalsParams(n_factors=6, l2=2.0, alpha=5.0, frequency=1.0, iterations=3, place_tau=0)
    model = Ials(params).fit(data, no_columns(data), seed=1)
    items = model.item_vectors().astype(np.float64)
    mass = 5.0 * np.bincount(data.users, minlength=60) + 20
    for user, folded in enumerate(model.encode(data.histories())):
        mine = items[data.items[data.users == user]]
        left = items.T @ items + 2.0 * mass[user] / mass.mean() * np.eye(6) + 5.0 * mine.T @ mine
        np.testing.assert_allclose(folded, np.linalg.solve(left, 6.0 * mine.sum(axis=0)), rtol=1e-3, atol=1e-4)


def test_alternating_least_squares_comes_to_the_closed_form_of_every_row() -> None:
    data = random_events(300, 40, 3000)
    rng = np.random.default_rng(0)
    seen = csr_matrix((np.full(len(data), 4, np.float32), (data.users, data.items)), shape=(300, 40))
    seen.sum_duplicates()
    l2_users, l2_items = np.exp(rng.normal(0, 1.0, 300)), np.exp(rng.normal(0, 1.0, 40))
    *_, items = itertools.islice(alternate(seen, l2_users, l2_items, 4, seed=1), 60)
    y = items.astype(np.float64)
    gram, dense = y.T @ y, seen.toarray().astype(np.float64)
    less_one = np.where(dense > 0, dense - 1, 0)
    x = np.stack(
        [
            np.linalg.solve(gram + l2 * np.eye(4) + (y * extra[:, None]).T @ y, confident @ y)
            for l2, extra, confident in zip(l2_users, less_one, dense, strict=True)
        ]
    )
    again = np.stack(
        [
            np.linalg.solve(x.T @ x + l2 * np.eye(4) + (x * extra[:, None]).T @ x, confident @ x)
            for l2, extra, confident in zip(l2_items, less_one.T, dense.T, strict=True)
        ]
    )
    # What buckets change: a regularisation is that of its bucket, within an eighth of the range of all.
    assert np.linalg.norm(again - y) < 0.1 * np.linalg.norm(y)
    flat = Side(seen, np.ones(300))
    assert flat.buckets == [(0, 300, 1.0)]
    bounds = [(start, end) for start, end, _ in Side(seen, np.sort(l2_users)).buckets]
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == 300
    assert len(bounds) <= MOST_BUCKETS
