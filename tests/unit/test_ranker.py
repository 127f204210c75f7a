"""The network ranker: it learns what decides, the same way each time, and survives its files."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.errors import BundleError
from app.ranking.examples import Examples
from app.ranking.network import NetworkParams, NetworkRanker, ndcg_among_candidates

NAMES = ("a", "b", "noise", "constant")
QUICK = NetworkParams(epochs=12, batch_cases=8, learning_rate=0.01)


def examples(cases: int = 100, seed: int = 0) -> Examples:
    """12 candidates a case; the target is the one with the largest a * b, on very unequal scales."""
    random = np.random.default_rng(seed)
    table = random.normal(size=(cases * 12, 4)).astype(np.float32)
    table[:, 3] = 7.0
    targets = (table[:, 0] * table[:, 1]).reshape(cases, 12).argmax(axis=1)
    table[:, 1] *= 1000.0
    targets[::5] = -1
    return Examples(table, np.arange(cases + 1) * 12, targets)


@pytest.fixture(scope="module")
def fitted() -> NetworkRanker:
    ranker = NetworkRanker(NAMES, QUICK)
    report = ranker.fit(examples())
    assert report.cases == 80
    assert report.held_out_loss == min(report.losses)
    assert report.losses[report.best_epoch - 1] == report.held_out_loss
    return ranker


def test_learns_what_decides(fitted: NetworkRanker) -> None:
    fresh = examples(seed=1).with_target()
    assert ndcg_among_candidates(fitted.score(fresh.features), fresh).mean() > 0.8


def test_same_seed_same_ranker_and_saved_equals_loaded(fitted: NetworkRanker, tmp_path: Path) -> None:
    table = examples(seed=2).features
    again = NetworkRanker(NAMES, QUICK)
    again.fit(examples())
    assert np.array_equal(again.score(table), fitted.score(table))
    fitted.save(tmp_path)
    loaded = NetworkRanker.load(tmp_path)
    assert loaded.feature_names == NAMES
    assert np.array_equal(loaded.score(table), fitted.score(table))
    described = json.loads((tmp_path / "ranker.json").read_text())
    described["params"]["hidden"] += 1
    (tmp_path / "ranker.json").write_text(json.dumps(described))
    with pytest.raises(BundleError, match="do not fit"):
        NetworkRanker.load(tmp_path)


def test_batch_equals_single(fitted: NetworkRanker) -> None:
    table = examples(seed=3).features[:40]
    together = fitted.score(table)
    assert np.allclose(together, np.concatenate([fitted.score(table[row : row + 1]) for row in range(40)]), atol=1e-5)
    assert fitted.score(table[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"found shape \(40, 3\), wanted \(R, 4\)"):
        fitted.score(table[:, :3])


def test_too_little_to_learn_from() -> None:
    few = examples().slice(0, 10)
    with pytest.raises(ValueError, match="found 8 cases"):
        NetworkRanker(NAMES, QUICK).fit(few)


def test_cases_are_taken_whole() -> None:
    flat = Examples(np.arange(6, dtype=np.float32)[:, None], np.array([0, 2, 2, 6]), np.array([1, -1, 3]))
    taken = flat.take(np.array([2, 0]))
    assert taken.features[:, 0].tolist() == [2, 3, 4, 5, 0, 1]
    assert taken.offsets.tolist() == [0, 4, 6]
    assert flat.with_target().targets.tolist() == [1, 3]
    thin = flat.thinned(2, np.random.default_rng(0))
    assert len(thin.features) < 6
    assert thin.features[thin.offsets[[0, 2]] + thin.targets[[0, 2]], 0].tolist() == [1.0, 5.0]
    assert flat.slice(1, 3).offsets.tolist() == [0, 0, 4]
    assert ndcg_among_candidates(flat.features[:, 0], flat).tolist() == [1.0, 0.0, 1.0]
