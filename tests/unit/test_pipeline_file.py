"""Pipeline files: what is wrong is named; the times of a schedule; what a deadline leaves to the trials."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.errors import SettingsError
from app.settings import Settings
from tune.pipeline.deadline import after_trials_s, reserve_s
from tune.pipeline.file import SchedulePlan, check_pipeline, parse_pipeline, read_pipeline
from tune.pipeline.record import Attempt, RunRecord, StepRecord, StepState
from tune.pipeline.schedule import DAY_S, Due, Timetable

SETTINGS = Settings.model_validate({"surfaces": {"home": {}}})
WHOLE = """
name: nightly
schedule: {at: "03:00"}
deadline: 2h
steps:
  update: {retries: 3, backoff: 1m}
  sweep: {file: small.yaml, timeout: 1.5h}
  promote: {surfaces: [home]}
  publish:
"""


def written(folder: Path, text: str) -> Path:
    (folder / "small.yaml").write_text("name: small\nfamilies: {popularity: {}}\n")
    (folder / "nightly.yaml").write_text(text)
    return folder / "nightly.yaml"


def test_a_whole_file(tmp_path: Path) -> None:
    file = written(tmp_path, WHOLE)
    found, document = read_pipeline(file)
    check_pipeline(file, found, SETTINGS)
    assert (found.name, found.deadline) == ("nightly", 7200)
    assert found.schedule == SchedulePlan(at="03:00")
    assert found.steps.named() == ["update", "sweep", "promote", "publish"]
    assert (found.steps.plan("update").retries, found.steps.plan("update").backoff) == (3, 60)
    assert found.steps.plan("sweep").timeout == 5400
    assert found.steps.plan("publish").retries == 2
    assert parse_pipeline(document, "run.json") == found, "a run goes on by what its document holds"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nam": "x"}, "nam: found 'x', wanted one of the keys name, schedule, deadline, keep, steps"),
        ({"name": "Nightly!"}, "name: found 'Nightly!', wanted String should match pattern"),
        ({"schedule": {"at": 780}}, 'schedule.at: found 780, wanted a time of day in UTC, in quotes: "03:00"'),
        ({"schedule": {"at": "24:00"}}, "schedule.at: found '24:00', wanted a time of day in UTC"),
        ({"schedule": {"every": "soon"}}, "schedule.every: found 'soon', wanted a number above 0 with its unit: 30s"),
        ({"schedule": {"every": "30s"}}, "schedule: found {'every': '30s'}, wanted every: 1m or more"),
        ({"schedule": {}}, "schedule: found {}, wanted either every or at"),
        ({"schedule": {"at": "03:00", "every": "1h"}}, "wanted either every or at"),
        ({"schedule": {"cron": "0 3 * * *"}}, "wanted one of the keys every, at"),
        ({"deadline": 7200}, "deadline: found 7200, wanted a number with its unit: 30s, 15m, 2h or 1d"),
        ({"deadline": "0h"}, "deadline: found '0h', wanted a number above 0"),
        ({"steps": {}}, "steps: found {}, wanted at least one of update, sweep, promote, publish"),
        ({"steps": None}, "steps: found None"),
        ({"steps": {"train": {}}}, "steps.train: found {}, wanted one of the keys update, sweep, promote, publish"),
        ({"steps": {"promote": {}}}, "steps: found {'promote': {}}, wanted sweep beside promote"),
        ({"steps": {"sweep": {}}}, "steps.sweep.file: found 'nothing', wanted this key"),
        ({"steps": {"sweep": {"file": "gone.yaml"}}}, "steps.sweep.file: found 'gone.yaml', wanted a sweep file under"),
        ({"steps": {"sweep": {"file": "bad.yaml"}}}, "bad.yaml: families: found 'nosuch', wanted one of"),
        ({"steps": {"update": {"retries": -1}}}, "steps.update.retries: found -1, wanted"),
        ({"steps": {"update": {"file": "x"}}}, "wanted one of the keys retries, backoff, timeout, accept_gap"),
        (
            {"steps": {"sweep": {"file": "small.yaml"}, "promote": {"surfaces": ["shop"]}}},
            "steps.promote.surfaces: found 'shop', wanted one of home",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nfamilies: {nosuch: {}}\n")
    file = written(tmp_path, yaml.safe_dump(yaml.safe_load(WHOLE) | change))
    with pytest.raises(SettingsError) as refused:
        check_pipeline(file, read_pipeline(file)[0], SETTINGS)
    assert said in str(refused.value)
    again = pickle.loads(pickle.dumps(refused.value))  # from a process apart
    assert (str(again), again.key) == (str(refused.value), refused.value.key)


@pytest.mark.parametrize("text", ["", "- name", "{name: [", "name: x"])
def test_what_is_no_pipeline(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        read_pipeline(written(tmp_path, text))
    with pytest.raises(SettingsError, match="no such file"):
        read_pipeline(tmp_path / "gone.yaml")


HOUR = 3600.0


def test_hourly_begins_at_once_and_runs_what_was_missed_once() -> None:
    plan = parse_pipeline({"name": "x", "schedule": {"every": "1h"}, "steps": {"update": {}}}, "x").schedule
    assert plan is not None
    times = Timetable.of(plan)
    assert times.due(10.5 * HOUR, None, 10.5 * HOUR) == Due(10 * HOUR, 0)
    assert times.due(10.9 * HOUR, 10 * HOUR, 0.0) is None
    assert times.due(11 * HOUR, 10 * HOUR, 0.0) == Due(11 * HOUR, 0)
    assert times.due(15.2 * HOUR, 10 * HOUR, 0.0) == Due(15 * HOUR, 4)
    assert times.due(9.5 * HOUR, 10 * HOUR, 0.0) is None, "a clock that was set back"
    assert times.following(10.5 * HOUR) == 11 * HOUR


def test_daily_waits_for_its_time_first() -> None:
    times = Timetable.of(SchedulePlan(at="03:00"))
    noon = 100 * DAY_S + 12 * HOUR
    assert times.due(noon, None, noon) is None, "it was not there to miss today's"
    assert times.following(noon) == 101 * DAY_S + 3 * HOUR
    assert times.due(101 * DAY_S + 3 * HOUR, None, noon) == Due(101 * DAY_S + 3 * HOUR, 0)
    assert times.due(103 * DAY_S + 4 * HOUR, None, noon) == Due(103 * DAY_S + 3 * HOUR, 2), "three passed: one run"
    assert times.due(102 * DAY_S, 101 * DAY_S + 3 * HOUR, noon) is None


def measured(seconds: float, *, sweeps: int = 1, state: StepState = "done") -> RunRecord:
    """A run whose promotion ended so long after its trials."""
    attempts = [Attempt(job=f"s{n}", began=0.0, ended=100.0) for n in range(sweeps)]
    sweep = StepRecord(name="sweep", state="done", attempts=attempts, result={"trials_ended": 50.0})
    ended = [Attempt(job="p", began=100.0, ended=50.0 + seconds)]
    promote = StepRecord(name="promote", state=state, attempts=ended)
    return RunRecord(id="r", pipeline="p", file="f", document={}, began=0.0, steps=[sweep, promote])


def test_the_trials_leave_time_for_what_comes_after_them() -> None:
    assert reserve_s([], 7200) == 1800, "never measured: a quarter"
    assert after_trials_s(measured(60)) == 60
    assert reserve_s([measured(60), measured(100), measured(80)], 7200) == pytest.approx(125)
    many = [measured(10)] * 5
    assert reserve_s([*many, measured(1000)], 7200) == pytest.approx(17), "only the newest five"
    assert reserve_s([measured(10_000)], 7200) == 5400, "a quarter is left to the trials"
    unclear = [measured(999, sweeps=2), measured(999, state="failed"), measured(60)]
    assert reserve_s(unclear, 7200) == pytest.approx(77), "what was tried again says nothing"
