"""Runs of a pipeline on jobs that are not real, by a clock that is not: killed at every point, tried again, in time."""

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.errors import Conflict, MantaError
from app.lock_file import hold
from tune.pipeline.file import parse_pipeline
from tune.pipeline.jobs import JobsAway, JobState
from tune.pipeline.record import RunRecord, Store, put_result, read_result
from tune.pipeline.run import PATIENCE_S, Conductor
from tune.pipeline.service import Service

START = 1_800_000_000.0
DOCUMENT: dict[str, Any] = {
    "name": "nightly",
    "deadline": "2h",
    "steps": {
        "update": {"retries": 2, "backoff": "10s"},
        "sweep": {"file": "small.yaml"},
        "promote": {"retries": 1},
        "publish": {},
    },
}


class Killed(BaseException):
    """The pipeline's own process is gone."""


@dataclass
class World:
    """A cluster whose jobs take their time by a clock that only waiting moves; it outlives the pipeline's process.

    `fails`: how often a job of a step ends with an error; `silent`: without a word; `kill_at`: the how manieth act of
    the pipeline on the world kills it, before or after that has its effect.
    """

    folder: Path
    takes: dict[str, float] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)
    refused: str | None = None
    no_bundle: str | None = None
    away_until: float = 0.0
    now: float = START
    kill_at: int | None = None
    kill_before: bool = False
    acts: int = 0
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    running: dict[str, tuple[str, Path, float]] = field(default_factory=dict)
    states: dict[str, JobState] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    live_at: float | None = None

    def act(self, effect: Any) -> Any:
        """What the pipeline does to the outside, and where it may be killed."""
        self.acts += 1
        if self.acts == self.kill_at and self.kill_before:
            raise Killed
        found = effect()
        if self.acts == self.kill_at:
            raise Killed
        return found

    # Jobs

    def state(self, job: str) -> JobState | None:
        return self.act(lambda: self._state(job))  # type: ignore[no-any-return]

    def _state(self, job: str) -> JobState | None:
        if self.now < self.away_until:
            raise JobsAway("Ray's Jobs API: connection refused")
        self._work()
        return self.states.get(job)

    def submit(self, job: str, words: Sequence[str], about: Mapping[str, str]) -> None:
        def effect() -> None:
            assert job not in self.states, f"{job} was submitted twice"
            assert about == {"pipeline": "nightly", "run": job[: len("nightly-20270115-080000")], "step": words[1]}
            self.begun.append(words[1])
            self.running[job] = words[1], Path(words[0]), self.now + self.takes.get(words[1], 5.0)
            self.states[job] = "running"

        self.act(effect)

    def stop(self, job: str) -> None:
        self.running.pop(job, None)
        self.states[job] = "stopped"

    def last_words(self, job: str) -> str:
        return f"{job} was killed"

    def _work(self) -> None:
        for job, (step, folder, ends) in list(self.running.items()):
            if ends <= self.now:
                del self.running[job]
                self._end(job, step, folder)

    def _end(self, job: str, step: str, folder: Path) -> None:
        for failures, word in ((self.fails, "the broker is away"), (self.silent, None)):
            if failures.get(step, 0):
                failures[step] -= 1
                self.states[job] = "failed"
                if word is not None:
                    put_result(folder, job, {"ok": False, "error": word, "again": True})
                return
        self.ended.append(step)
        self.states[job] = "succeeded"
        put_result(folder, job, {"ok": True, "result": self._found(step)})

    def _found(self, step: str) -> dict[str, Any]:
        bundle = None if self.no_bundle else "b1"
        if step == "promote":
            self.live_at = None if self.refused else self.now
        found: dict[str, dict[str, Any]] = {
            "update": {"data_time": self.now, "rows": {"events": 3}},
            "sweep": {"bundle": bundle, "reason": self.no_bundle, "trials_ended": self.now - 1},
            "promote": {"live": self.live_at, "reason": self.refused, "promotion": "p1", "surfaces": ["home"]},
            "publish": {"address": "/b1", "sent": True},
        }
        return found[step]

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def store(self) -> Store:
        world = self

        class Killable(Store):
            def save(self, run: RunRecord) -> None:
                world.act(lambda: super(Killable, self).save(run))

        return Killable(self.folder, "nightly")

    def service(self, document: dict[str, Any] = DOCUMENT) -> Service:
        """A new process of the pipeline."""
        store = self.store()
        (self.folder / "small.yaml").write_text("name: small\nfamilies: {popularity: {}}\n")
        conductor = Conductor(
            store,
            self,
            lambda folder, step, job: [str(folder), step, job],
            clock=lambda: self.now,
            wait=self.wait,
            say=self.told.append,
        )
        return Service(
            store,
            parse_pipeline(document, "nightly.yaml"),
            document,
            self.folder / "nightly.yaml",
            conductor.carry_out,
            clock=lambda: self.now,
            wait=self.wait,
            say=self.told.append,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def steps_of(run: RunRecord) -> dict[str, str]:
    return {step.name: step.state for step in run.steps}


ALL = ["update", "sweep", "promote", "publish"]


def test_a_run_from_data_to_live(world: World) -> None:
    run = world.service().once()
    assert (run.id, run.state, run.bundle) == ("nightly-20270115-080000", "live", "b1")
    assert world.begun == world.ended == ALL
    assert steps_of(run) == dict.fromkeys(ALL, "done")
    assert run.live == world.live_at
    assert run.deadline == run.data_time + 7200  # type: ignore[operator]
    shown = run.as_json()
    assert [(step["step"], step["attempts"][0]["job"]) for step in shown["steps"]] == [
        (step, f"nightly-20270115-080000-{step}") for step in ALL
    ]
    assert all(5.0 <= step["seconds"] < 7.0 for step in shown["steps"])
    assert shown["snapshot_to_live_s"] == pytest.approx(11, abs=3)
    assert shown["late_s"] is None
    json.dumps(shown)
    assert Store(world.folder, "nightly").runs() == [run], "the history has it"
    copy = Store(world.folder, "nightly").folder_of(run.id) / "sweep.yaml"
    assert copy.read_text() == (world.folder / "small.yaml").read_text()


@pytest.mark.parametrize("before", [False, True])
def test_killed_at_any_point_it_goes_on_and_runs_no_step_twice(tmp_path: Path, before: bool) -> None:
    quick = dict.fromkeys(ALL, 1.0)
    whole = World(tmp_path / "whole", takes=quick)
    whole.folder.mkdir()
    whole.service().once()
    for place in range(1, whole.acts + before):  # after its last act the run has ended
        world = World(tmp_path / f"{place}", takes=quick, kill_at=place, kill_before=before)
        world.folder.mkdir()
        with pytest.raises(Killed):
            world.service().once()
        world.now += 7.0  # what runs goes on meanwhile
        world.kill_at = None
        run = world.service().once()
        assert run.state == "live", (place, world.told)
        assert world.begun == world.ended == ALL, f"killed at {place}"
        assert {len(step.attempts) for step in run.steps} == {1}
        assert Store(world.folder, "nightly").runs() == [run]


def test_a_ray_that_is_new_begins_the_job_again(world: World) -> None:
    """The pipeline and its Ray were killed in the sweep: no job is known, and none has said anything."""
    world.takes["sweep"] = 100.0
    world.kill_at = 40
    with pytest.raises(Killed):
        world.service().once()
    assert world.begun == ["update", "sweep"]
    world.kill_at = None
    world.running.clear()
    world.states.clear()
    assert world.service().once().state == "live"
    assert world.begun == ["update", "sweep", "sweep", "promote", "publish"]


def test_what_fails_is_tried_again_after_a_pause_that_doubles(world: World) -> None:
    world.fails["update"], world.silent["sweep"] = 2, 1
    run = world.service().once()
    assert run.state == "live"
    update, sweep = run.steps[0], run.steps[1]
    assert [(one.state, one.error) for one in update.attempts] == [
        ("failed", "the broker is away"),
        ("failed", "the broker is away"),
        ("done", None),
    ]
    pauses = [
        later.began - (earlier.ended or 0) for earlier, later in zip(update.attempts, update.attempts[1:], strict=False)
    ]
    assert pauses == [10.0, 20.0]
    assert [one.job for one in update.attempts][1:] == [f"{run.id}-update-2", f"{run.id}-update-3"]
    assert sweep.attempts[0].error == f"job {run.id}-sweep: failed: {run.id}-sweep was killed"


def test_a_pause_is_kept_over_a_kill(tmp_path: Path) -> None:
    for place in range(3, 60):
        world = World(tmp_path / f"{place}", takes={"update": 1.0}, fails={"update": 1}, kill_at=place)
        world.folder.mkdir()
        with pytest.raises(Killed):
            world.service().once()
        (killed,) = world.store().runs()
        if (due := killed.steps[0].not_before) > 0:
            break
    world.kill_at = None
    run = world.service().once()
    assert run.steps[0].attempts[1].began == due == run.steps[0].attempts[0].ended + 10  # type: ignore[operator]


def test_what_fails_too_often_ends_the_run(world: World) -> None:
    world.fails["update"] = 9
    run = world.service().once()
    assert (run.state, run.reason) == ("failed", "update: the broker is away")
    assert steps_of(run) == {"update": "failed", "sweep": "waiting", "promote": "waiting", "publish": "waiting"}
    assert len(run.steps[0].attempts) == 3
    world.fails.clear()
    again = world.service().once()
    assert (again.state, again.id != run.id) == ("live", True)


def test_a_publication_that_fails_says_what_is_live(world: World) -> None:
    world.fails["publish"] = 9
    run = world.service().once()
    assert (run.state, run.reason) == ("failed", "publish: the broker is away; b1 is live")


def test_what_is_refused_leaves_the_champion_and_is_no_failure(world: World) -> None:
    world.refused = "worse than what is live: ndcg_at_10 0.1 against 0.2"
    run = world.service().once()
    assert (run.state, run.reason) == ("kept", world.refused)
    assert steps_of(run) == {"update": "done", "sweep": "done", "promote": "done", "publish": "skipped"}


def test_a_sweep_without_a_bundle_leaves_the_champion(world: World) -> None:
    world.no_bundle = "no trial had ended by the deadline"
    run = world.service().once()
    assert (run.state, run.reason, run.bundle) == ("kept", world.no_bundle, None)
    assert world.begun == ["update", "sweep"]


def test_the_deadline_counts_from_the_data_and_is_told_to_the_sweep(world: World) -> None:
    first = world.service().once()
    assert first.trials_until == first.data_time + 7200 - 1800  # type: ignore[operator]
    world.takes = {"update": 600.0, "promote": 60.0}
    second = world.service().once()
    assert second.data_time == pytest.approx(second.began + 600, abs=1)
    assert 5 <= second.reserve_s < 20, "what the first run took, and a fifth"  # type: ignore[operator]
    third = world.service().once()
    assert 72 < third.reserve_s < 90, "promotion took longer since"  # type: ignore[operator]
    world.takes = {"sweep": 8000.0}
    late = world.service().once()
    assert late.state == "live"
    assert late.late_s == pytest.approx(806, abs=5)
    assert late.reason == f"{late.late_s:.0f} s after the deadline"


def test_a_sweep_that_is_tried_again_keeps_its_deadline(world: World) -> None:
    world.silent["sweep"] = 1
    world.takes["sweep"] = 1000.0
    run = world.service().once()
    assert run.trials_until == run.data_time + 5400  # type: ignore[operator]


def test_a_step_that_hangs_is_stopped(world: World) -> None:
    document = DOCUMENT | {"steps": {"update": {"timeout": "1m", "retries": 0}}}
    world.takes["update"] = 1e9
    run = world.service(document).once()
    assert (run.state, run.reason) == ("failed", f"update: job {run.id}-update: found it running after 60 s")
    assert world.states == {f"{run.id}-update": "stopped"}


def test_a_jobs_api_that_is_away_for_a_while_is_waited_for(world: World) -> None:
    world.away_until = START + PATIENCE_S - 5
    assert world.service().once().state == "live"
    world.away_until = world.now + 10 * PATIENCE_S
    with pytest.raises(JobsAway, match="goes on from here"):
        world.service().once()
    world.now = world.away_until
    assert world.service().once().state == "live"
    assert len(Store(world.folder, "nightly").runs()) == 2


def test_ctrl_c_stops_the_job_and_costs_no_retry(world: World) -> None:
    world.takes["sweep"] = 1000.0
    waited = world.wait

    def interrupted(seconds: float) -> None:
        if world.begun[-1:] == ["sweep"]:
            raise KeyboardInterrupt
        waited(seconds)

    world.wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        world.service().once()
    assert "stopped" in world.states.values()
    world.wait = waited  # type: ignore[method-assign]
    run = world.service().once()
    assert run.state == "live"
    assert [one.state for one in run.steps[1].attempts] == ["interrupted", "done"]


def test_a_wrong_setting_is_not_tried_again(world: World) -> None:
    def wrong(job: str, step: str, folder: Path) -> None:
        world.states[job] = "failed"
        put_result(folder, job, {"ok": False, "error": "x.yaml: families: found 1", "again": False})

    world._end = wrong  # type: ignore[method-assign]
    run = world.service().once()
    assert (run.state, run.reason) == ("failed", "update: x.yaml: families: found 1")
    assert len(run.steps[0].attempts) == 1


HOURLY = DOCUMENT | {"schedule": {"every": "1h"}, "keep": 3}


def test_missed_times_are_run_once_and_the_history_is_bounded(world: World) -> None:
    service = world.service(HOURLY)
    service.follow_schedule(rounds=1)
    world.now += 5 * 3600.0  # nobody was there
    service.follow_schedule(rounds=3)  # a run, then two looks at the clock
    runs = Store(world.folder, "nightly").runs()
    assert [(run.due, run.missed) for run in runs] == [(START + 5 * 3600, 4), (START, 0)]
    service.follow_schedule(rounds=200)
    runs = Store(world.folder, "nightly").runs()
    assert len(runs) == 3
    assert [run.due for run in runs] == [START + hour * 3600 for hour in (8, 7, 6)]
    assert all(0 <= run.began - (run.due or 0) <= 60.5 for run in runs)


def test_a_schedule_outlives_what_goes_wrong(world: World) -> None:
    world.away_until = START + 300
    world.service(HOURLY).follow_schedule(rounds=6)
    runs = Store(world.folder, "nightly").runs()
    assert [run.state for run in runs] == ["live"]
    assert any("trying again" in line for line in world.told)


def test_what_was_interrupted_comes_before_what_is_due(world: World) -> None:
    world.kill_at = 12
    with pytest.raises(Killed):
        world.service(HOURLY).follow_schedule(rounds=1)
    world.kill_at = None
    world.now += 3 * 3600.0
    world.service(HOURLY).follow_schedule(rounds=2)
    runs = Store(world.folder, "nightly").runs()
    assert [(run.due, run.missed) for run in runs] == [(START + 3 * 3600, 2), (START, 0)]
    assert world.ended == ALL * 2


def test_a_run_that_cannot_be_read_is_named(world: World) -> None:
    run = world.service().once()
    file = Store(world.folder, "nightly").folder_of(run.id) / "run.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(MantaError, match=r"run\.json: found .*, wanted a run of a pipeline"):
        world.service().once()


def test_a_result_is_whole_or_not_there(tmp_path: Path) -> None:
    assert read_result(tmp_path, "job") is None
    (tmp_path / "job.json").write_text('{"ok": tr')
    assert read_result(tmp_path, "job") is None
    put_result(tmp_path, "job", {"ok": True})
    assert read_result(tmp_path, "job") == {"ok": True}


def _hold(file: str, held: Any) -> None:
    with hold(Path(file), "pipeline nightly", file="/etc/nightly.yaml"):
        held.set()
        time.sleep(600)


def test_the_second_is_told_who_holds_the_lock_and_a_kill_gives_it_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "p" / "lock"), held))
    holder.start()
    try:
        assert held.wait(60)
        said = rf"pipeline nightly: found it held by process {holder.pid} on .* since 20.*UTC, file /etc/nightly.yaml"
        with pytest.raises(Conflict, match=said), hold(tmp_path / "p" / "lock", "pipeline nightly"):
            pass
    finally:
        holder.kill()
        holder.join()
    with hold(tmp_path / "p" / "lock", "pipeline nightly"):
        assert (tmp_path / "p" / "lock").stat().st_size
