"""Splits in time and the next-event protocol: what is seen, what is masked, how ties fall."""

import numpy as np
from numpy.typing import NDArray

from app.evaluation.protocols import next_event
from app.evaluation.splits import by_time, of_some_users
from app.models.interactions import Histories, Interactions


def events(users: list[int], items: list[int], n_items: int) -> Interactions:
    n = len(users)
    times = np.array([10, 10, *range(11, 9 + n)], np.int64)[:n]  # the first two are of one instant
    return Interactions(
        np.array(users, np.int32), np.array(items, np.int32), np.ones(n, np.float32), times, max(users) + 1, n_items
    )


def test_split_in_time() -> None:
    split = by_time(events([0, 1] * 10, list(range(20)), 20), 0.2, 0.1)
    assert len(split.fit) == 14
    assert len(split.before_validation) == 16
    assert split.ranker_cases.tolist() == [14, 15]
    assert split.validation_cases.tolist() == [16, 17, 18, 19]
    assert split.fit.n_users == 2


def test_sampled_cases_are_of_whole_users() -> None:
    data = events([0, 1, 2] * 6, [0] * 18, 1)
    cases = of_some_users(data, np.arange(9, 18), 2, seed=3)
    users, counts = np.unique(data.users[cases], return_counts=True)
    assert len(users) == 2
    assert counts.tolist() == [3, 3]
    assert of_some_users(data, np.arange(9, 18), 3, seed=3).tolist() == list(range(9, 18))


def test_next_event_sees_the_past_alone_and_masks_it() -> None:
    data = events([0, 1, 0, 0, 0], [3, 2, 1, 0, 3], 5)
    seen: list[list[int]] = []

    def scorer(histories: Histories) -> NDArray[np.float32]:
        seen.extend(part.tolist() for part in np.split(histories.items, histories.offsets[1:-1]))
        return np.tile(np.array([1, 2, 3, 4, 5], np.float32), (len(histories), 1))

    result = next_event(scorer, data, np.array([0, 2, 3, 4]), ks=(1, 3), batch=3)
    assert seen == [[], [3], [3, 1], [3, 1, 0]]
    # 3: second of five; 1: behind 4 and 2 (3 is consumed); 0: behind 4 and 2; 3: consumed, a miss.
    assert result.ranks.tolist() == [2, 3, 3, np.inf]
    assert result.metrics["hit_rate_at_3"] == 0.75
    assert result.users.tolist() == [0, 0, 0, 0]
    open_result = next_event(scorer, data, np.array([4]), mask_history=False)
    assert open_result.ranks.tolist() == [2]


def test_ties_fall_at_random_by_seed_and_not_by_batch() -> None:
    data = events([0] * 400, [0] * 400, 10)
    cases = np.arange(400)

    def flat(histories: Histories) -> NDArray[np.float32]:
        return np.zeros((len(histories), 10), np.float32)

    one = next_event(flat, data, cases, mask_history=False, batch=7)
    two = next_event(flat, data, cases, mask_history=False, batch=400)
    other = next_event(flat, data, cases, mask_history=False, seed=1)
    np.testing.assert_array_equal(one.ranks, two.ranks)
    assert (one.ranks != other.ranks).any()
    assert set(one.ranks) == set(range(1, 11))
    assert 0.4 < one.metrics["hit_rate_at_5"] < 0.6


def test_a_target_that_the_model_does_not_know_is_a_miss() -> None:
    data = events([0, 0], [0, 9], 10)
    result = next_event(lambda histories: np.ones((len(histories), 4), np.float32), data, np.array([1]))
    assert result.ranks.tolist() == [np.inf]
    assert result.metrics["recall_at_50"] == 0
