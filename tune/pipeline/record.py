"""What a pipeline has done and is doing, on disk before anybody acts on it: one JSON document a run."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import MantaError

RUN = "run.json"
SWEEP = "sweep.yaml"
FOLDER = "pipelines"

AttemptState = Literal["running", "done", "failed", "interrupted"]
StepState = Literal["waiting", "running", "done", "failed", "skipped"]
# live: promoted; kept: the champion stays; done: there was nothing to promote.
RunState = Literal["running", "live", "kept", "done", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Attempt(_Record):
    """One Ray job. `job`: its submission id; times in seconds since 1970."""

    job: str
    began: float
    ended: float | None = None
    state: AttemptState = "running"
    error: str | None = None


class StepRecord(_Record):
    """A step of a run. `not_before`: until then the next attempt waits; `result`: what its job has said."""

    name: str
    state: StepState = "waiting"
    attempts: list[Attempt] = []
    not_before: float = 0.0
    result: dict[str, Any] = {}
    error: str | None = None

    @property
    def began(self) -> float | None:
        """When the first attempt began."""
        return self.attempts[0].began if self.attempts else None

    @property
    def ended(self) -> float | None:
        """When the last attempt ended."""
        return self.attempts[-1].ended if self.attempts else None

    @property
    def seconds(self) -> float | None:
        """From the first attempt's start to the last one's end, pauses included."""
        if self.began is None or self.ended is None:
            return None
        return self.ended - self.began


class RunRecord(_Record):
    """One run.

    Attributes:
        document: the pipeline file as it was when the run began; it is carried out by that.
        due: the time of the schedule that it is for; None: it was asked for.
        missed: earlier times that nobody ran.
        data_time: as of when the lake was complete: the snapshot that the deadline counts from.
        trials_until: when the sweep ends its trials, for the deadline's sake.
        deadline: until when the outcome is to be live.
        live: when it went live.
    """

    version: Literal[1] = 1
    id: str
    pipeline: str
    file: str
    document: dict[str, Any]
    began: float
    ended: float | None = None
    due: float | None = None
    missed: int = 0
    steps: list[StepRecord]
    state: RunState = "running"
    reason: str | None = None
    bundle: str | None = None
    data_time: float | None = None
    reserve_s: float | None = None
    trials_until: float | None = None
    deadline: float | None = None
    live: float | None = None

    def step(self, name: str) -> StepRecord | None:
        """The step of that name, if the run has it."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def late_s(self) -> float | None:
        """How long after the deadline it went live; None: in time, or not live, or no deadline."""
        if self.deadline is None or self.live is None or self.live <= self.deadline:
            return None
        return self.live - self.deadline

    def as_json(self) -> dict[str, Any]:
        """The run as the command line shows it: times as text, seconds of each step."""
        steps = [
            {
                "step": step.name,
                "state": step.state,
                "seconds": _rounded(step.seconds),
                "began": when(step.began),
                "attempts": [_shown(attempt) for attempt in step.attempts],
                "error": step.error,
                "result": step.result,
            }
            for step in self.steps
        ]
        return {
            "run": self.id,
            "pipeline": self.pipeline,
            "state": self.state,
            "reason": self.reason,
            "bundle": self.bundle,
            "due": when(self.due),
            "missed": self.missed,
            "began": when(self.began),
            "ended": when(self.ended),
            "seconds": _rounded(None if self.ended is None else self.ended - self.began),
            "data": when(self.data_time),
            "trials_until": when(self.trials_until),
            "deadline": when(self.deadline),
            "live": when(self.live),
            "snapshot_to_live_s": _rounded(
                None if self.live is None or self.data_time is None else self.live - self.data_time
            ),
            "late_s": _rounded(self.late_s),
            "steps": steps,
        }


def when(seconds: float | None) -> str | None:
    """Seconds since 1970 as `2026-11-21T10:15:00Z`."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _shown(attempt: Attempt) -> dict[str, Any]:
    return {**attempt.model_dump(), "began": when(attempt.began), "ended": when(attempt.ended)}


class Store:
    """`$MANTA_HOME/pipelines/NAME/`: the runs of one pipeline, each a folder with its document and its jobs' results.

    Raises (every method):
        MantaError: what is there cannot be read, or written.
    """

    def __init__(self, home: Path, pipeline: str) -> None:
        self.folder = home / FOLDER / pipeline

    @property
    def lock(self) -> Path:
        """What a pipeline holds while it works."""
        return self.folder / "lock"

    def folder_of(self, run: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / run

    def runs(self) -> list[RunRecord]:
        """Every run, newest first."""
        found = [read_run(file.parent) for file in (self.folder / "runs").glob(f"*/{RUN}")]
        return sorted(found, key=lambda run: (run.began, run.id), reverse=True)

    def unfinished(self) -> RunRecord | None:
        """The run that was interrupted."""
        return next((run for run in self.runs() if run.state == "running"), None)

    def create(self, run: RunRecord, sweep: Path | None) -> None:
        """Begins a run, with a copy of its sweep file: it goes on by that, whatever becomes of the file."""
        folder = self.folder_of(run.id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if sweep is not None:
                shutil.copyfile(sweep, folder / SWEEP)
        except OSError as error:
            raise MantaError(f"{folder}: found {error.strerror or error}, wanted room for a run") from None
        self.save(run)

    def save(self, run: RunRecord) -> None:
        """Puts the run's document in place in one step, on disk when this returns."""
        put(self.folder_of(run.id) / RUN, run.model_dump(mode="json"))

    def prune(self, keep: int) -> None:
        """Ended runs beyond the `keep` newest go."""
        for run in [run for run in self.runs() if run.state != "running"][keep:]:
            shutil.rmtree(self.folder_of(run.id), ignore_errors=True)

    def watched_since(self, now: float) -> float:
        """When the pipeline was first watched for its schedule: now, unless it was before."""
        file = self.folder / "watched.json"
        try:
            return float(json.loads(file.read_text())["since"])
        except (OSError, ValueError, KeyError, TypeError):
            put(file, {"since": now})
            return now


def read_run(folder: Path) -> RunRecord:
    """The run of a folder."""
    try:
        return RunRecord.model_validate_json((folder / RUN).read_bytes())
    except (OSError, ValidationError) as error:
        found = str(error).splitlines()[0]
        raise MantaError(f"{folder / RUN}: found {found}, wanted a run of a pipeline") from None


def put(file: Path, document: Any) -> None:
    """Writes a JSON document beside, and renames it when it is on disk."""
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w") as opened:
            json.dump(document, opened, indent=1)
            opened.flush()
            os.fsync(opened.fileno())
        beside.rename(file)
    except OSError as error:
        raise MantaError(f"{file}: found {error.strerror or error}, wanted room to write it") from None


def read_result(folder: Path, job: str) -> dict[str, Any] | None:
    """What a job has said at its end; None: nothing yet."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{job}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found


def put_result(folder: Path, job: str, said: dict[str, Any]) -> None:
    """Keeps what a job says at its end, for `read_result`."""
    put(folder / f"{job}.json", said)
