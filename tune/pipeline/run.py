"""One run of a pipeline: its steps as jobs, one after the other; interrupted anywhere, it goes on from there.

A job's name stands in the run's document before the job is submitted, and what it found in a file of the run's folder
before it ends: after a kill a job that runs is found again, one that has ended is believed, another begins.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import MantaError
from tune.pipeline import deadline
from tune.pipeline.file import PipelineFile, parse_pipeline
from tune.pipeline.jobs import Jobs, JobsAway
from tune.pipeline.record import Attempt, RunRecord, StepRecord, Store, put_result, read_result

LOOK_S = 0.5
PATIENCE_S = 60.0  # a Jobs API that is away for longer is given up; the run stays as it is
MOST_BACKOFF_S = 3600.0
LOST = 3  # times that the cluster may forget a job before the attempt has failed

Clock = Callable[[], float]
# Waits so many seconds.
Wait = Callable[[float], None]
Say = Callable[[str], None]
# The command line of a step's job: the run's folder, the step, the job.
Words = Callable[[Path, str, str], Sequence[str]]


class Conductor:
    """Carries out runs of one pipeline, one at a time; its lock is held by the caller.

    Args:
        jobs: where the steps run.
        words: the command line of a job.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, jobs: Jobs, words: Words, *, clock: Clock, wait: Wait, say: Say) -> None:
        self._store, self._jobs, self._words = store, jobs, words
        self._clock, self._wait, self._say = clock, wait, say
        self._heard = clock()

    def carry_out(self, run: RunRecord) -> RunRecord:
        """Does what is left of a run; it has ended when this returns.

        Raises:
            JobsAway: nobody answers; the run can be taken up again.
            KeyboardInterrupt: passed on, once the job that runs is stopped.
        """
        pipeline = parse_pipeline(run.document, run.file)
        self._heard = self._clock()
        for step in run.steps:
            if step.state in ("waiting", "running"):
                self._step(run, step, pipeline)
            if step.state == "failed":
                live = f"; {run.bundle} is live" if run.live is not None else ""
                return self._ended(run, "failed", f"{step.name}: {step.error}{live}")
        if run.live is not None:
            late = f"{run.late_s:.0f} s after the deadline" if run.late_s is not None else None
            return self._ended(run, "live", late)
        return self._ended(run, "done" if run.step("promote") is None else "kept", run.reason)

    def _ended(self, run: RunRecord, state: Any, reason: str | None) -> RunRecord:
        run.state, run.reason, run.ended = state, reason, self._clock()
        self._store.save(run)
        return run

    def _step(self, run: RunRecord, step: StepRecord, pipeline: PipelineFile) -> None:
        if (why := _needless(run, step)) is not None:
            step.state, step.error = "skipped", why
            self._store.save(run)
            self._say(f"{step.name}: left out: {why}")
            return
        plan = pipeline.steps.plan(step.name)
        while step.state in ("waiting", "running"):
            attempt = self._attempt(run, step, pipeline)
            said = self._followed(run, step, attempt, plan.timeout)
            attempt.ended = self._clock()
            if said.get("ok"):
                attempt.state, step.state, step.result = "done", "done", said["result"]
                self._take(run, step)
                self._store.save(run)
                self._say(f"{step.name}: done in {attempt.ended - attempt.began:.1f} s")
                return
            attempt.state, attempt.error = "failed", str(said["error"])
            failed = sum(one.state == "failed" for one in step.attempts)
            if not said.get("again", True) or failed > plan.retries:
                step.state, step.error = "failed", attempt.error
                self._say(f"{step.name}: failed: {attempt.error}")
            else:
                pause = min(plan.backoff * 2.0 ** (failed - 1), MOST_BACKOFF_S)
                step.not_before = attempt.ended + pause
                left = plan.retries - failed + 1
                self._say(f"{step.name}: {attempt.error}; again in {pause:.0f} s ({left} more times)")
            self._store.save(run)

    def _attempt(self, run: RunRecord, step: StepRecord, pipeline: PipelineFile) -> Attempt:
        """The attempt that was under way, or another, in the document before it begins."""
        if step.attempts and step.attempts[-1].state == "running":
            return step.attempts[-1]
        if (pause := step.not_before - self._clock()) > 0:
            self._wait(pause)
            self._heard = self._clock()
        if step.name == "sweep":
            self._set_deadline(run, pipeline)
        number = len(step.attempts) + 1
        job = f"{run.id}-{step.name}" + (f"-{number}" if number > 1 else "")
        step.attempts.append(Attempt(job=job, began=self._clock()))
        step.state = "running"
        self._store.save(run)
        return step.attempts[-1]

    def _set_deadline(self, run: RunRecord, pipeline: PipelineFile) -> None:
        """Once: what is tried again has the same deadline. Without an update the data are as of now."""
        if run.data_time is None:
            run.data_time = self._clock()
        if pipeline.deadline is None or run.deadline is not None:
            return
        run.deadline = run.data_time + pipeline.deadline
        run.reserve_s = deadline.reserve_s((one for one in self._store.runs() if one.id != run.id), pipeline.deadline)
        run.trials_until = run.deadline - run.reserve_s

    def _take(self, run: RunRecord, step: StepRecord) -> None:
        """What a step has found, in the run."""
        found = step.result
        if step.name == "update":
            run.data_time = float(found["data_time"])
        elif step.name == "sweep":
            run.bundle, run.reason = found["bundle"], found["reason"]
        elif step.name == "promote":
            run.reason = found["reason"]
            run.live = found["live"]

    def _followed(self, run: RunRecord, step: StepRecord, attempt: Attempt, timeout: float | None) -> dict[str, Any]:
        """What the job of an attempt says at its end."""
        folder, job, lost = self._store.folder_of(run.id), attempt.job, 0
        try:
            while True:
                if (said := read_result(folder, job)) is not None:
                    return said
                try:
                    state = self._jobs.state(job)
                    if state is None:
                        lost += 1
                        if lost > LOST:
                            return {"ok": False, "error": f"job {job}: found no such job, wanted it to run"}
                        self._say(f"{step.name}: job {job}")
                        self._jobs.submit(job, self._words(folder, step.name, job), _about(run, step))
                    elif state in ("succeeded", "failed", "stopped"):
                        return read_result(folder, job) or self._without_result(job, state)
                    elif timeout is not None and self._clock() - attempt.began > timeout:
                        self._jobs.stop(job)
                        said = {"ok": False, "error": f"job {job}: found it running after {timeout:g} s"}
                        put_result(folder, job, said)
                        return said
                    self._heard = self._clock()
                except JobsAway as error:
                    if self._clock() - self._heard > PATIENCE_S:
                        raise JobsAway(
                            f"run {run.id}: {error}; started again, the pipeline goes on from here"
                        ) from None
                self._wait(LOOK_S)
        except KeyboardInterrupt:
            self._interrupted(run, attempt)
            raise

    def _without_result(self, job: str, state: str) -> dict[str, Any]:
        return {"ok": False, "error": f"job {job}: {state}: {self._jobs.last_words(job)}"}

    def _interrupted(self, run: RunRecord, attempt: Attempt) -> None:
        try:
            self._jobs.stop(attempt.job)
        except MantaError as error:
            self._say(f"job {attempt.job} is not stopped: {error}")
            return
        attempt.state, attempt.ended = "interrupted", self._clock()
        self._store.save(run)


def _needless(run: RunRecord, step: StepRecord) -> str | None:
    """Why a step has nothing to do; None: it has."""
    if step.name == "promote" and run.bundle is None:
        return run.reason or "the sweep made no bundle"
    if step.name == "publish" and run.live is None:
        return "nothing went live"
    return None


def _about(run: RunRecord, step: StepRecord) -> dict[str, str]:
    return {"pipeline": run.pipeline, "run": run.id, "step": step.name}
