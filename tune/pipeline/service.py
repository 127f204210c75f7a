"""A pipeline at work: what was interrupted is finished, what is due is run, and in between it waits."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.errors import MantaError
from tune.pipeline.file import PipelineFile
from tune.pipeline.record import RunRecord, StepRecord, Store, when
from tune.pipeline.run import Clock, Say, Wait
from tune.pipeline.schedule import Due, Timetable

AGAIN_S = 30.0  # after a run that could not go on, such as where Ray was gone
NAP_S = 60.0  # a clock that is set is seen within this


class Service:
    """Runs of one pipeline file; its lock is held by the caller.

    Args:
        file: where the pipeline file is; its sweep file is beside it.
        carry_out: does what is left of a run, on a Ray of its own or on the system's.
    """

    def __init__(
        self,
        store: Store,
        pipeline: PipelineFile,
        document: dict[str, Any],
        file: Path,
        carry_out: Callable[[RunRecord], RunRecord],
        *,
        clock: Clock,
        wait: Wait,
        say: Say,
    ) -> None:
        self._store, self._pipeline, self._document, self._file = store, pipeline, document, file
        self._carry_out, self._clock, self._wait, self._say = carry_out, clock, wait, say

    def once(self) -> RunRecord:
        """What was interrupted, else a run now, whatever the schedule."""
        return self._done(self._store.unfinished() or self._begun(None))

    def follow_schedule(self, rounds: int | None = None) -> None:
        """For as long as the process lives, or so many rounds."""
        assert self._pipeline.schedule is not None
        times = Timetable.of(self._pipeline.schedule)
        since = self._store.watched_since(self._clock())
        said: float | None = None
        while rounds is None or (rounds := rounds - 1) >= 0:
            try:
                run = self._store.unfinished() or self._due(times, since)
                if run is not None:
                    self._done(run)
                    continue
            except MantaError as error:
                self._say(f"{error}; trying again in {AGAIN_S:.0f} s")
                self._wait(AGAIN_S)
                continue
            following = times.following(self._clock())
            if said != following:
                self._say(f"the next run is due at {when(following)}")
                said = following
            self._wait(min(NAP_S, max(0.1, following - self._clock())))

    def _due(self, times: Timetable, since: float) -> RunRecord | None:
        served = [run.due for run in self._store.runs() if run.due is not None]
        due = times.due(self._clock(), max(served, default=None), since)
        return None if due is None else self._begun(due)

    def _begun(self, due: Due | None) -> RunRecord:
        now, steps = self._clock(), self._pipeline.steps
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S")
        name, number = f"{self._pipeline.name}-{stamp}", 1
        while self._store.folder_of(name).exists():
            number += 1
            name = f"{self._pipeline.name}-{stamp}-{number}"
        run = RunRecord(
            id=name,
            pipeline=self._pipeline.name,
            file=str(self._file),
            document=self._document,
            began=now,
            due=None if due is None else due.time,
            missed=0 if due is None else due.missed,
            steps=[StepRecord(name=step) for step in steps.named()],
        )
        self._store.create(run, None if steps.sweep is None else self._file.parent / steps.sweep.file)
        return run

    def _done(self, run: RunRecord) -> RunRecord:
        missed = f"; {run.missed} earlier times were missed" if run.missed else ""
        again = "goes on" if any(step.attempts for step in run.steps) else "begins"
        self._say(f"run {run.id} {again}{missed}")
        ended = self._carry_out(run)
        self._store.prune(self._pipeline.keep)
        why = f": {ended.reason}" if ended.reason else ""
        self._say(f"run {ended.id}: {ended.state}{why}")
        return ended
