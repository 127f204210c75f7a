"""`blend`: what is held out, scales that can be added, weights that find the part that knows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.errors import MantaError, SettingsError
from app.models.blend import Blend, BlendParams
from app.models.blend_weights import FORMS, Cases, Scale, fit_weights, hold_out
from app.models.families import make
from app.models.interactions import Catalogue, Interactions
from app.models.kinds import kind_of


def events(users: list[int], items: list[int]) -> Interactions:
    n = len(users)
    times = np.arange(n, dtype=np.int64)
    return Interactions(
        np.array(users, np.int32), np.array(items, np.int32), np.ones(n, np.float32), times, max(users) + 1, 9
    )


def test_the_last_event_of_who_has_another_is_held_out() -> None:
    data = events([0, 1, 0, 2, 1, 0], [3, 4, 5, 6, 7, 8])
    held = hold_out(data, 10, seed=0)
    assert held.targets.tolist() == [8, 7]
    assert held.rest.items.tolist() == [3, 4, 5, 6]
    assert [held.histories.slice(c, c + 1).items.tolist() for c in (0, 1)] == [[3, 5], [4]]
    assert held.mask
    assert len(hold_out(data, 1, seed=0).targets) == 1
    assert not hold_out(events([0, 1, 0, 1], [3, 3, 3, 4]), 10, seed=0).mask  # somebody has an item twice


def test_what_came_as_validation_is_held_out() -> None:
    data = events([0, 1, 0, 2, 1, 0, 1], [3, 4, 5, 6, 7, 8, 1])
    given = np.array([False, False, False, True, True, True, True])  # user 2 has nothing else
    held = hold_out(replace(data, validation=given), 10, seed=0)
    assert held.targets.tolist() == [8, 7]  # of user 1 the first
    assert held.rest.items.tolist() == [3, 4, 5]
    assert held.rest.validation is None
    sets = events([0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6])
    drawn = {tuple(hold_out(sets, 10, seed=seed).targets.tolist()) for seed in range(40)}
    assert drawn == {(a, b) for a in (1, 2, 3) for b in (4, 5, 6)}


def test_the_order_of_events_says_what_they_are() -> None:
    assert kind_of(events([0, 0, 1, 1], [1, 2, 3, 4])) == "sets"
    assert kind_of(events([0, 1, 0, 1], [1, 2, 3, 4])) == "sessions"
    assert kind_of(events([0, 1] * 30, [1] * 60)) == "sequences"


def test_scales_do_not_depend_on_the_unit_of_a_score() -> None:
    scores = np.array([[0, 1, 5, 2], [7, 7, 7, 7]], np.float32)
    other = scores * 1000 + 3
    for form in FORMS:
        values = Scale.of(scores).form(form, scores)
        np.testing.assert_allclose(values, Scale.of(other).form(form, other), rtol=1e-3, atol=1e-5)
        assert not values[1].any()
        assert (np.argsort(values[0]) == np.argsort(scores[0])).all()
    standard = Scale.of(scores).form("standard", scores)[0]
    assert (standard.mean(), standard.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, rel=1e-5))


def said(*parts: np.ndarray) -> Cases:
    """Cases whose parts say the given z-scores (C, U), in every form alike."""
    stacked = np.stack([part for part in parts for _ in FORMS], axis=2).astype(np.float32)
    return Cases(stacked, np.ones(stacked.shape[:2], bool))


def test_weights_find_what_each_part_knows() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(400, 60)) for _ in range(3)]
    noise[0][:, 0] += 1.5
    noise[1][:, 0] += 1.5
    weights, quality = fit_weights(["one", "other", "noise"], said(*noise))
    assert set(weights) == {"one", "other"}
    assert quality["blend"] > max(quality["one"], quality["other"]) * 1.1
    total = [sum(weights[name].values()) for name in ("one", "other")]
    assert 0.5 < total[0] / total[1] < 2


def test_a_part_that_adds_nothing_is_left_out() -> None:
    good = np.random.default_rng(0).normal(size=(300, 50))
    good[:, 0] += 1
    weights, quality = fit_weights(["good", "same"], said(good, good))
    assert len(weights) == 1
    assert quality["blend"] == pytest.approx(quality["good"], rel=1e-2)


def test_a_part_that_refuses_is_left_out_and_named() -> None:
    rng = np.random.default_rng(0)
    data = events(sorted(rng.integers(0, 8, 60).tolist()), rng.integers(0, 9, 60).tolist())
    catalogue = Catalogue.of([str(row) for row in range(9)])
    params = {"parts": ["ease", "item_knn"], "part_params": {"ease": {"memory_limit_bytes": 1}}}
    model = make("blend", params).fit(data, catalogue)
    assert isinstance(model, Blend)
    assert list(model.weights) == ["item_knn"]
    assert "memory_limit_bytes" in model.refused["ease"]
    with pytest.raises(MantaError, match="blend: found no part"):
        Blend(BlendParams(parts=("ease",), part_params={"ease": {"memory_limit_bytes": 1}})).fit(data, catalogue)


def test_unknown_parts_and_their_parameters_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"parts": ["nobody"]},
        {"part_params": {"nobody": {}}},
        {"part_params": {"ease": {"l2": -1}}},
    ]
    for params in wrong:
        with pytest.raises(SettingsError, match=r"nobody|ease"):
            make("blend", params)
