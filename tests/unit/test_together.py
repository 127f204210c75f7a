"""A model that several processes fit together is the one that a single process fits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from app.errors import SettingsError
from app.models import together
from app.models.families import FAMILIES
from app.settings import Settings
from tests.unit.together_child import PARAMS, fitted
from tune.space import parse_sweep


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    names = ",".join(PARAMS)
    command = [sys.executable, "-m", "tests.unit.together_child", names]
    children = [subprocess.Popen([*command, str(rank), "2", str(tmp_path)]) for rank in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    for family in PARAMS:
        alone = tmp_path / family
        alone.mkdir()
        fitted(family).save(alone)
        first, second, one = (
            load_file(tmp_path / folder / "arrays.safetensors") for folder in (f"{family}-0", f"{family}-1", family)
        )
        for name, array in one.items():
            np.testing.assert_array_equal(first[name], second[name], f"{family} {name}")
            # Adam's first steps are signs: what rounding tells apart of a gradient near 0 is a whole step.
            np.testing.assert_allclose(first[name], array, atol=2e-3, err_msg=f"{family} {name}")


def test_every_row_of_a_batch_is_learned_from_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, taken = np.arange(7), []
    for rank in range(3):
        monkeypatch.setattr(together, "place", lambda rank=rank: (rank, 3))
        taken += together.mine(batch).tolist()
        assert len(together.mine(batch[:1])) == (rank == 0)
    assert sorted(taken) == batch.tolist()


def test_families_that_processes_can_fit_together_are_all_tried_above() -> None:
    assert {name for name, family in FAMILIES.items() if family.shared_fit} == PARAMS.keys()


def test_workers_are_for_families_that_can() -> None:
    asked = {"name": "s", "families": {"ease": {"workers": 2}}}
    with pytest.raises(SettingsError, match=r"families.ease.workers: found 2, wanted 1.*sasrec, two_tower"):
        parse_sweep(asked, "s.yaml", Settings())
    sweep = parse_sweep({"name": "s", "families": {"sasrec": {"workers": 2}}}, "s.yaml", Settings())
    assert sweep.families["sasrec"].workers == 2
