"""Families that count what follows what in a session, against their plain definitions."""

from typing import Any

import numpy as np
import pytest

from app.errors import MantaError
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.runs import Runs
from app.models.seq_ridge import SeqRidge, SeqRidgeParams
from app.models.session_knn import SessionKnn, SessionKnnParams


def sessions(lists: list[list[int]], n_items: int, times: list[list[int]] | None = None) -> Interactions:
    """Users 0, 1, ... with one list each, in the order of their times (minutes; None: one session after the other)."""
    clock = iter(range(10**6))
    minutes = times or [[next(clock) for _ in one] for one in lists]
    flat = [
        (minute * 60_000, user, item)
        for user, (one, own) in enumerate(zip(lists, minutes, strict=True))
        for item, minute in zip(one, own, strict=True)
    ]
    flat.sort(key=lambda event: event[0])
    stamps, users, items = (np.array(column) for column in zip(*flat, strict=True))
    ones = np.ones(len(flat), np.float32)
    return Interactions(
        users.astype(np.int32), items.astype(np.int32), ones, stamps.astype(np.int64), len(lists), n_items
    )


def random_sessions(n: int, n_items: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_items, rng.integers(1, 12)).tolist() for _ in range(n)]


def catalogue(n_items: int) -> Catalogue:
    return Catalogue.of([str(row) for row in range(n_items)])


def one_item_histories(n_items: int) -> Histories:
    return Histories.of_lists([[row] for row in range(n_items)], as_of=10**9)


def knn(data: Interactions, **params: Any) -> np.ndarray:
    """The item-item matrix of a fitted `session_knn`."""
    given: dict[str, Any] = {"recent": 0, "length_power": 0, "source_power": 0, "target_power": 0, "backward": 0.5}
    given |= {"window_tau": 2.0, "repeat": 0}
    model = SessionKnn(SessionKnnParams.model_validate(given | params)).fit(data, catalogue(data.n_items))
    return model.score(one_item_histories(data.n_items))


def test_session_knn_is_its_formula() -> None:
    lists = random_sessions(30, 9)
    params = {"recent": 0.4, "length_power": 0.5, "source_power": 0.6, "target_power": 0.3, "window": 4}
    found = knn(sessions(lists, 9), gap_minutes=0, **params)
    counts = np.bincount([item for one in lists for item in one], minlength=9)
    wanted = np.zeros((9, 9))
    for place, one in enumerate(lists):
        worth = np.exp(-(29 - place) / 30 / 0.4) * len(one) ** -0.5
        for here, i in enumerate(one):
            for there, j in enumerate(one):
                if i != j and abs(there - here) <= 4:
                    share = 1 if there > here else 0.5
                    wanted[i, j] += worth * share * np.exp(-(abs(there - here) - 1) / 2)
    wanted /= counts[:, None] ** 0.6 * counts**0.3
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_rows_made_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sessions(random_sessions(30, 9), 9)
    whole = knn(data)
    monkeypatch.setattr("app.models.session_knn.PAIRS", 25)
    np.testing.assert_allclose(knn(data), whole, rtol=1e-5)


def test_only_an_items_newest_sessions_speak() -> None:
    data = sessions([[0, 1], [0, 2], [0, 3], [4, 1]], 5)
    assert knn(data, sample=2)[0].nonzero()[0].tolist() == [2, 3]
    assert knn(data, sample=2)[1].nonzero()[0].tolist() == [0, 4]


def test_an_item_speaks_for_itself_as_far_as_events_repeat() -> None:
    data = sessions([[0, 1, 0], [2, 2], [1, 3]], 4)  # two of the four events behind a first one repeat an item
    apart, found = knn(data), knn(data, repeat=3.0)
    np.testing.assert_allclose(np.diag(found), 3.0 * 0.5 * apart.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found - np.diag(np.diag(found)), apart, rtol=1e-5)
    assert not np.diag(knn(sessions([[0, 1], [1, 2]], 4), repeat=3.0)).any()


def test_a_pause_ends_a_session() -> None:
    data = sessions([[0, 1, 2]], 3, [[0, 20, 60]])
    assert knn(data)[0].tolist() == [0, 1, 0]
    assert knn(data, gap_minutes=0)[0, 2] > 0


def test_the_newest_session_is_found_by_time_or_where_times_are_places_by_number() -> None:
    by_time = Runs.of(sessions([[0, 1], [2]], 3, [[5, 9], [2]]), 0)
    assert by_time.age.tolist() == [0, 0.5]
    places = Runs.of(sessions([[0, 1, 1], [2, 0], [1]], 3, [[1, 2, 3], [1, 2], [1]]), 0)
    assert places.age.tolist() == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0]


@pytest.mark.parametrize("weighted", [False, True])
def test_seq_ridge_is_its_formula(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.seq_ridge.CELLS", 30)
    monkeypatch.setattr("app.models.seq_ridge.PAIRS", 7)
    data = sessions(random_sessions(40, 10), 10)
    if weighted:
        data.weights[:] = np.random.default_rng(1).uniform(0.5, 2, len(data))
    inputs, targets = [], []
    for user in range(data.n_users):
        x = np.zeros(10)
        for item, weight in zip(data.items[data.users == user], data.weights[data.users == user], strict=True):
            inputs.append(x)
            targets.append(weight * np.eye(10)[item])
            x = np.exp(-1 / 4) * x + weight * np.eye(10)[item]
    x, y = np.array(inputs), np.array(targets)
    wanted = np.linalg.solve(x.T @ x + 3.0 * np.eye(10), x.T @ y)
    frequency = np.bincount(data.items, minlength=10)
    wanted /= frequency**0.3
    np.fill_diagonal(wanted, 0)
    params = SeqRidgeParams(place_tau=4.0, l2=3.0, target_power=0.3)
    model = SeqRidge(params).fit(data, catalogue(10))
    np.testing.assert_allclose(model.score(one_item_histories(10)), wanted, atol=2e-4)
    asked = Histories.of_lists([[3, 4, 4, 7]], as_of=10**9)
    places = np.exp(-np.array([3, 2, 1, 0]) / 4)
    np.testing.assert_allclose(model.score(asked)[0], places @ wanted[[3, 4, 4, 7]], atol=5e-4)


def test_seq_ridge_refuses_before_any_work_and_says_what_it_needs() -> None:
    empty = np.zeros(0, np.int32)
    data = Interactions(empty, empty, empty.astype(np.float32), empty.astype(np.int64), 10, 100_000)
    with pytest.raises(MantaError, match=r"160\.0 GB.*at most memory_limit_bytes = 4\.0 GB"):
        SeqRidge().fit(data, Catalogue([], catalogue(1).columns, {}))
