"""Metrics on cases computed by hand."""

import numpy as np
import pytest

from app.evaluation.metrics import bootstrap_interval, per_case

INF = float("inf")


def test_one_held_out_item() -> None:
    values = per_case(np.array([1.0, 3.0, 11.0, INF]), np.arange(5), (5, 10))
    assert values["hit_rate_at_10"].tolist() == [1, 1, 0, 0]
    assert values["recall_at_10"].tolist() == values["capped_recall_at_10"].tolist() == [1, 1, 0, 0]
    assert values["ndcg_at_5"] == pytest.approx([1, 0.5, 0, 0])
    assert values["mrr_at_5"] == pytest.approx([1, 1 / 3, 0, 0])


def test_several_held_out_items() -> None:
    # One case with 3 held out at places 1, 4 and 20; one with 6 of which 2 are within 5; one with none.
    ranks = np.array([1.0, 4.0, 20.0, 2.0, 5.0, 6.0, 7.0, 8.0, INF])
    values = per_case(ranks, np.array([0, 3, 9, 9]), (5,))
    assert values["recall_at_5"] == pytest.approx([2 / 3, 2 / 6, 0])
    assert values["capped_recall_at_5"] == pytest.approx([2 / 3, 2 / 5, 0])
    assert values["hit_rate_at_5"].tolist() == [1, 1, 0]
    assert values["mrr_at_5"] == pytest.approx([1, 1 / 2, 0])
    best_three = 1 + 1 / np.log2(3) + 1 / 2
    best_five = best_three + 1 / np.log2(5) + 1 / np.log2(6)
    assert values["ndcg_at_5"] == pytest.approx(
        [(1 + 1 / np.log2(5)) / best_three, (1 / np.log2(3) + 1 / np.log2(6)) / best_five, 0]
    )


def test_interval_draws_users_not_cases() -> None:
    # Two users who differ: by case the mean would look certain, by user it is anything from 0 to 1.
    values = np.repeat([0.0, 1.0], 500)
    assert bootstrap_interval(values, np.repeat([7, 9], 500), seed=1) == (0.0, 1.0)
    low, high = bootstrap_interval(values, np.arange(1000), seed=1)
    assert 0.45 < low < 0.5 < high < 0.55
    assert bootstrap_interval(np.zeros(0), np.zeros(0, np.int64)) == (0.0, 0.0)
