"""Examples and what the network learns of positions; `tests/contract/test_rankers.py` has what every ranker does."""

import numpy as np
import pytest

from app.ranking.examples import Examples, both, ndcg_of_targets
from app.ranking.network import NetworkParams, NetworkRanker
from tests.unit.clicks import NAMES, clicks


def test_cases_are_taken_whole() -> None:
    flat = Examples.of_targets(np.arange(6, dtype=np.float32)[:, None], np.array([0, 2, 2, 6]), np.array([1, -1, 3]))
    assert flat.targets.tolist() == [1, -1, 3]
    taken = flat.take(np.array([2, 0]))
    assert taken.features[:, 0].tolist() == [2, 3, 4, 5, 0, 1]
    assert taken.offsets.tolist() == [0, 4, 6]
    assert flat.answered().targets.tolist() == [1, 3]
    thin = flat.thinned(2, np.random.default_rng(0))
    assert len(thin.features) < 6
    assert thin.features[thin.offsets[[0, 2]] + thin.targets[[0, 2]], 0].tolist() == [1.0, 5.0]
    assert flat.slice(1, 3).offsets.tolist() == [0, 0, 4]
    assert ndcg_of_targets(flat.features[:, 0], flat).tolist() == [1.0, 0.0, 1.0]
    twice = both(flat, flat)
    assert (twice.targets.tolist(), twice.offsets.tolist()) == ([1, -1, 3] * 2, [0, 2, 2, 6, 8, 8, 12])
    with pytest.raises(ValueError, match="wanted the same"):
        both(flat, clicks(2, 0))


def test_the_first_of_several_answered_rows_is_the_target() -> None:
    labels = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [0, 1]], np.float32)
    rows = Examples(np.zeros((5, 1), np.float32), np.array([0, 3, 5]), labels, ("click", "like"), np.zeros(5, np.int32))
    assert rows.targets.tolist() == [1, -1]
    assert len(rows.answered()) == 2  # the second was liked


def test_the_network_learns_how_much_is_looked_at_where() -> None:
    ranker = NetworkRanker(
        NAMES, NetworkParams(epochs=6, batch_cases=32, learning_rate=0.01, cross_layers=0, positions=6)
    )
    ranker.fit(clicks(2500, 0))
    assert ranker.position_logits.shape == (6, 2)
    click, purchase = ranker.position_logits.T
    true = -np.log([1, 2, 3, 4, 5, 7])  # of looking at 1, 2, ... 5, and 6 to 8 together
    np.testing.assert_allclose(click, true, atol=0.45)
    assert np.abs(purchase).max() < 0.35  # which no position decides
