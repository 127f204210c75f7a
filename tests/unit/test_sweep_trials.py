"""One trial and what becomes of it, without Ray: divergence, a full disk, retries, budgets, the objective."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import MantaError
from app.models.ials import Ials
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.popularity import Popularity
from app.settings import Settings
from tune.head import PATIENCE_S, Head
from tune.journal import Journal
from tune.objective import Objective
from tune.pool import Shape
from tune.search import proposer_of
from tune.space import SweepFile, parse_sweep
from tune.steering import SweepSearcher, Trials, shape_of
from tune.sweep import order_matters
from tune.trial import Configuration, Report, Rungs, SharedData, fit_and_judge, save_model

N_ITEMS, N_EVENTS = 30, 600
SHAPE = Shape(1.0, 0.0)


@pytest.fixture(scope="module")
def shared() -> SharedData:
    random = np.random.default_rng(0)
    users = random.integers(0, 20, N_EVENTS).astype(np.int32)
    items = np.minimum(random.zipf(1.2, N_EVENTS) - 1, N_ITEMS - 1).astype(np.int32)
    weights, times = np.ones(N_EVENTS, np.float32), np.arange(N_EVENTS, dtype=np.int64)
    events = Interactions(users, items, weights, times, 20, N_ITEMS)
    return SharedData(events, Catalogue.of([str(row) for row in range(N_ITEMS)]), 500, np.arange(500, 600), 50)


def judged(shared: SharedData, family: str = "popularity", **more: Any) -> Report:
    params = {"n_factors": 4, "iterations": 6} if family == "ials" else {}
    options: dict[str, Any] = {"metric": "ndcg_at_10", "seed": 0, "report": lambda _: None, **more}
    return fit_and_judge(family, params, shared, **options)


def sweep(**more: Any) -> SweepFile:
    families = {"ials": {"samples": 3, "defaults": False}, "popularity": {"samples": 1, "cpus": 0.5, "gpus": 0.25}}
    document = {"name": "s", "families": families, "search": "random", "scheduler": "none", **more}
    return parse_sweep(document, "s.yaml", Settings())


def trials(folder: Path, **more: Any) -> tuple[Trials, Journal]:
    journal, found = Journal(folder / "trials.jsonl"), sweep(**more)
    searcher = SweepSearcher(found, journal.finished)
    return Trials(found, journal, searcher, lambda family: shape_of(found, family, 0.0), lambda: None), journal


DONE: Report = {"ends": True, "pass": 3, "value": 0.2, "metrics": {"ndcg_at_10": 0.2}, "fit_s": 1.0, "evaluate_s": 0.5}


def test_what_is_no_number_never_wins(shared: SharedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Popularity, histories: Histories) -> NDArray[np.float32]:
        return np.full((len(histories), self.n_items), np.nan, np.float32)

    monkeypatch.setattr(Popularity, "score", broken)
    with pytest.raises(MantaError, match="popularity: a score is NaN or infinite"):
        judged(shared)


def test_a_family_that_diverges_is_stopped_at_that_pass(shared: SharedData, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    whole = Ials._set_vectors

    def diverging(self: Ials, vectors: NDArray[np.float32]) -> None:
        passes.append(1)
        whole(self, vectors * np.float32(np.nan) if len(passes) > 3 else vectors)

    monkeypatch.setattr(Ials, "_set_vectors", diverging)
    with pytest.raises(MantaError, match="ials: diverged after pass 3: a score is NaN or infinite"):
        judged(shared, "ials")
    assert len(passes) == 4  # an unfitted model's, and three passes of six


def test_a_full_disk_leaves_the_result_and_no_half_a_model(
    shared: SharedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "popularity-000"
    save_model(Popularity().fit(shared.fit, shared.catalogue), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(self: Popularity, into: Path) -> None:
        (into / "arrays.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Popularity, "save", full)
    found = judged(shared, save_to=folder)
    assert found["note"] == "not saved: No space left on device"
    assert found["bytes"] is None
    assert found["value"] > 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["popularity-000"]


def test_a_journal_on_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    work, journal = trials(tmp_path)
    job = work.take(SHAPE)
    assert job is not None
    journal.file = Path("/dev/full")
    with pytest.raises(MantaError, match="/dev/full: found No space left on device, wanted room for a result"):
        work.told(job, dict(DONE))


def test_latency_and_size_are_weighed_against_quality(shared: SharedData, tmp_path: Path) -> None:
    plain = judged(shared, save_to=tmp_path / "m")
    assert plain["value"] == plain["metrics"]["ndcg_at_10"]
    assert plain["latency_ms"] is None
    found = judged(shared, save_to=tmp_path / "m", objective=Objective(0.001, 2.0), probes=5)
    assert found["latency_ms"] > 0
    wanted = found["metrics"]["ndcg_at_10"] - 0.001 * found["latency_ms"] - 2.0 * found["bytes"] / 1e6
    assert found["value"] == pytest.approx(wanted)
    rungs = list[Report]()
    judged(shared, "ials", report=rungs.append, rungs=Rungs(2, 2), objective=Objective(0.001, 2.0), probes=5)
    assert [one["pass"] for one in rungs] == [2, 4]
    assert all(one["bytes"] and one["latency_ms"] and one["value"] < one["metrics"]["ndcg_at_10"] for one in rungs)


def test_a_trial_whose_process_died_is_tried_once_more_with_the_same_parameters(tmp_path: Path) -> None:
    work, journal = trials(tmp_path)
    first = work.take(SHAPE)
    assert first is not None
    work.died(first, "the trial's process died (killed)")
    second = work.take(SHAPE)
    assert second is not None
    assert second.name == first.name
    assert second.load.params == first.load.params
    assert Journal(journal.file).finished == []
    work.died(second, "the trial's process died (killed)")
    (failed,) = Journal(journal.file).finished
    assert (failed.state, failed.error, failed.attempts) == ("failed", "the trial's process died (killed)", 2)
    third = work.take(SHAPE)
    assert third is not None
    assert third.name != first.name


@pytest.mark.parametrize(("again", "attempts"), [(True, 3), (False, 1)])
def test_what_the_machine_failed_is_tried_again_and_what_a_family_refuses_is_not(
    again: bool, attempts: int, tmp_path: Path
) -> None:
    work, journal = trials(tmp_path, retries=2)
    for _ in range(attempts):
        job = work.take(SHAPE)
        assert job is not None
        assert job.load.number == 0
        work.told(job, {"ends": True, "error": "no", "again": again})
    assert [(one.state, one.attempts) for one in Journal(journal.file).finished] == [("failed", attempts)]
    assert sum(work.waiting().values()) == 3


def test_what_the_budget_cuts_off_runs_again_when_resumed(tmp_path: Path) -> None:
    work, journal = trials(tmp_path, cpu_hour=3600.0, budget_cost=1.0)
    done, running = work.take(SHAPE), work.take(SHAPE)
    assert done is not None
    assert running is not None
    work.told(done, dict(DONE))
    work.cut()
    again = Journal(journal.file)
    assert {name: one.state for name, one in again.trials.items()} == {done.name: "done", running.name: "cut"}
    assert again.trials[done.name].cost == pytest.approx(again.trials[done.name].wall_s, rel=1e-6)
    assert [one.name for one in again.finished] == [done.name]


def test_families_reserve_their_own_and_gpus_only_where_there_are_any() -> None:
    assert shape_of(sweep(), "ials", 0.0) == (1.0, 0.0)
    assert shape_of(sweep(), "popularity", 0.0) == (0.5, 0.0)
    assert shape_of(sweep(), "popularity", 4.0) == (0.5, 0.25)
    families = {"sasrec": {"gpus": 4}}
    assert shape_of(sweep(families=families), "sasrec", 2.0) == (1.0, 2.0)


def test_workers_of_a_shape_get_trials_of_that_shape(tmp_path: Path) -> None:
    work, _ = trials(tmp_path)
    assert dict(work.waiting()) == {(1.0, 0.0): 3, (0.5, 0.0): 1}
    job = work.take(Shape(0.5, 0.0))
    assert job is not None
    assert isinstance(job.load, Configuration)
    assert job.load.family == "popularity"
    assert work.take(Shape(0.5, 0.0)) is None


def test_a_population_moves_towards_what_is_good() -> None:
    space = {"l2": {"loguniform": [1, 10_000]}, "n_factors": {"int": [4, 64]}, "alpha": [0.5, 1.0, 2.0]}
    families = {"ials": {"samples": 40, "space": space}}
    found = sweep(search="population", families=families, population=6)

    def searched() -> list[dict[str, Any]]:
        proposer, tried = proposer_of(found, "ials"), list[dict[str, Any]]()
        for number in range(proposer.count):
            tried.append(proposer.propose(number))
            value = None if number == 3 else -abs(np.log(tried[-1].get("l2", 10.0) / 300.0))
            proposer.tell(number, tried[-1], value)
        return tried

    tried = searched()
    assert tried == searched()
    off = [abs(np.log(one.get("l2", 10.0) / 300.0)) for one in tried]
    plain = proposer_of(sweep(search="random", families=families), "ials")
    drawn = [abs(np.log(plain.propose(number)["l2"] / 300.0)) for number in range(1, 40)]
    assert np.median(off[-20:]) < 0.6 * np.median(drawn)
    assert all(1 <= one["l2"] <= 10_000 and 4 <= one["n_factors"] <= 64 for one in tried[1:])
    assert all(isinstance(one["n_factors"], int) and one["alpha"] in (0.5, 1.0, 2.0) for one in tried[1:])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, False),
        ({"search": "optuna"}, True),
        ({"search": "population"}, True),
        ({"scheduler": "asha"}, True),
        ({"search": "optuna", "scheduler": "asha", "max_concurrent": 1}, False),
        ({"objective": {"megabyte": 0.1}}, False),
        ({"objective": {"latency_ms": 0.1}, "max_concurrent": 1}, True),
    ],
)
def test_the_report_says_whether_order_mattered(change: dict[str, Any], wanted: bool) -> None:
    assert order_matters(sweep(**change)) == wanted


def test_a_head_that_is_gone_is_said_before_ray_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tune.head.time.monotonic", lambda: now[0])
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = Head(f"127.0.0.1:{server.getsockname()[1]}")
        now[0] += 60
        assert head.look("s-1")
    now[0] += 2
    assert not head.look("s-1")
    now[0] += PATIENCE_S + 1
    with pytest.raises(MantaError, match=r"Ray's head at 127.0.0.1:\d+ is gone; .*`--resume s-1` goes on"):
        head.look("s-1")
