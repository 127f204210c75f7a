"""A fit that begins where the last one ended is as good as one from nothing, at less than half of its passes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.errors import MantaError
from app.evaluation.protocols import next_event
from app.models.candidate import CandidateModel
from app.models.families import FAMILIES, make
from app.models.interactions import Catalogue, Interactions
from app.models.warm import WarmModel, rows_before

OF_TORCH = {"n_factors": 16, "history": 8, "iterations": 10, "lr": 0.005, "dropout": 0.1}
PARAMS: dict[str, dict[str, Any]] = {
    "ials": {"n_factors": 16, "iterations": 10},
    "two_tower": {**OF_TORCH, "n_hidden": 16, "batch": 128},
    "sasrec": {**OF_TORCH, "blocks": 1, "batch_events": 200},
}
WARM = [name for name in FAMILIES if isinstance(make(name), WarmModel)]
N, BEFORE, NOW = 9000, 6500, 8000  # events; known to the fit before, and to the one now


def walks() -> Interactions:
    """Users who walk through items of one of 12 kinds; items of new kinds come up as time goes on."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 300, N).astype(np.int32)
    kinds = (users + (rng.random(N) < 0.15) * rng.integers(0, 12, N)) % 12
    items = kinds * 10 + (rng.integers(0, 6, N) + 4 * np.arange(N) // N)
    order = list(dict.fromkeys(items.tolist()))  # rows in the order of appearance
    rows = np.array([order.index(item) for item in items.tolist()], np.int32)
    return Interactions(users, rows, np.ones(N, np.float32), np.arange(N) * 60_000, 300, len(order))


def first(data: Interactions, n: int) -> tuple[Interactions, Catalogue]:
    some = data.first(n)
    some = replace(some, n_items=int(some.items.max()) + 1)
    return some, Catalogue.of([str(row) for row in range(some.n_items)])


def fitted(model: CandidateModel, data: Interactions, catalogue: Catalogue) -> tuple[CandidateModel, int]:
    """The model, and how many passes it took."""
    passes: list[int] = []
    model.fit(data, catalogue, seed=1, progress=lambda number, _: passes.append(number))
    return model, len(passes)


def test_the_families_that_can_are_all_tried() -> None:
    assert list(PARAMS) == WARM


@pytest.mark.parametrize("family", WARM)
def test_a_warm_fit_is_as_good_at_less_than_half_of_the_cost(family: str) -> None:
    data = walks()
    (old, old_items), (now, items) = first(data, BEFORE), first(data, NOW)
    assert len(old_items) < len(items)
    before, _ = fitted(make(family, PARAMS[family]), old, old_items)
    answers = before.score(old.histories())
    cold, cold_passes = fitted(make(family, PARAMS[family]), now, items)
    model = make(family, PARAMS[family])
    assert isinstance(model, WarmModel)
    assert isinstance(before, WarmModel)
    warm, warm_passes = fitted(model.begin_at(before, rows_before(old_items, items)), now, items)
    assert (cold_passes, warm_passes) == (10, 4)
    cases = np.arange(NOW, N)
    found = [next_event(one, data, cases, mask_history=False).per_case["ndcg_at_10"] for one in (cold, warm)]
    difference = found[1] - found[0]
    assert difference.mean() > -2 * difference.std() / np.sqrt(len(cases))
    assert found[1].mean() > 0.3  # by chance about .05
    np.testing.assert_array_equal(before.score(old.histories()), answers)
    again, passes = fitted(warm, now, items)  # the beginning was for one fit
    assert passes == 10
    np.testing.assert_array_equal(again.score(now.histories()), cold.score(now.histories()))


@pytest.mark.parametrize("family", WARM)
def test_a_fit_does_not_begin_at_a_model_of_another_size(family: str) -> None:
    before, model = make(family, {**PARAMS[family], "n_factors": 8}), make(family, PARAMS[family])
    assert isinstance(model, WarmModel)
    assert isinstance(before, WarmModel)
    with pytest.raises(
        MantaError, match=f"{family}: found a model of n_factors = 8 to begin at, wanted n_factors = 16"
    ):
        model.begin_at(before, np.zeros(0, np.int64))
