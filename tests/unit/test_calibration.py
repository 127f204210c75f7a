"""Calibration: probabilities that come true, in the order of the scores, whatever the shape of the truth."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ranking.calibration import Calibration, reliability

Truth = Callable[[np.ndarray], np.ndarray]
TRUTHS: dict[str, Truth] = {
    "sigmoid": lambda s: 1 / (1 + np.exp(4 - 2 * s)),
    "two levels": lambda s: np.where(s > 0.5, 0.4, 0.02),
    "rare": lambda s: 0.01 / (1 + np.exp(-3 * s)),
    "late": lambda s: np.clip(s - 1.5, 0, 0.9),
}


def drawn(truth: Truth, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.normal(size=n).astype(np.float32)
    return scores, (random.random(n) < truth(scores)).astype(np.float32)


@pytest.mark.parametrize("name", TRUTHS)
def test_what_is_predicted_comes_true(name: str) -> None:
    calibration = Calibration.fit(*drawn(TRUTHS[name], 30_000, 0))
    scores, labels = drawn(TRUTHS[name], 60_000, 1)
    found = reliability(calibration(scores), labels)
    assert found.error < 0.008
    raw = reliability((1 / (1 + np.exp(-scores))).astype(np.float32), labels)
    assert raw.error > 0.1  # the scores themselves say nothing of how likely it is
    truth = TRUTHS[name](scores)
    assert np.abs(calibration(scores) - truth).mean() < 0.012


def test_reliability_by_hand() -> None:
    probabilities = np.array([0.9, 0.1, 0.8, 0.2], np.float32)
    found = reliability(probabilities, np.array([1, 0, 0, 0], np.float32), bins=2)
    assert found.predicted == pytest.approx([0.15, 0.85])
    assert found.observed == pytest.approx([0.0, 0.5])
    assert found.error == pytest.approx(0.25)


@given(st.integers(2, 400), st.floats(0, 1), st.integers(0, 10), st.booleans())
def test_the_order_stays_whatever_was_held_out(n: int, share: float, seed: int, alike: bool) -> None:
    random = np.random.default_rng(seed)
    scores = (np.zeros(n) if alike else random.normal(scale=3, size=n)).astype(np.float32)
    labels = (random.random(n) < share).astype(np.float32)
    calibration = Calibration.fit(scores, labels)
    asked = np.linspace(-5, 5, 41).astype(np.float32)
    found = calibration(asked)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()
    assert Calibration.model_validate_json(calibration.model_dump_json())(asked).tolist() == found.tolist()


def test_two_scores_of_one_step_stay_apart() -> None:
    calibration = Calibration.fit(*drawn(TRUTHS["two levels"], 30_000, 0))
    assert calibration.scores
    assert (np.diff(calibration(np.linspace(-3, 3, 200).astype(np.float32))) > 0).all()
