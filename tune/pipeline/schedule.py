"""The times at which a pipeline is due; all of them in UTC, as seconds since 1970."""

import math
from dataclasses import dataclass

from tune.pipeline.file import SchedulePlan

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Due:
    """A run that is due. `time`: the newest time that has passed; `missed`: earlier ones that nobody ran."""

    time: float
    missed: int


@dataclass(frozen=True, slots=True)
class Timetable:
    """Times `period_s` apart. `at_once`: the first run does not wait for one."""

    period_s: float
    offset_s: float
    at_once: bool

    @classmethod
    def of(cls, plan: SchedulePlan) -> "Timetable":
        """The times of a file."""
        if plan.every is not None:
            return cls(float(plan.every), 0.0, at_once=True)
        assert plan.at is not None
        hours, minutes = plan.at.split(":")
        return cls(DAY_S, 3600.0 * int(hours) + 60.0 * int(minutes), at_once=False)

    def latest(self, now: float) -> float:
        """The newest time that is not after `now`."""
        return self.offset_s + math.floor((now - self.offset_s) / self.period_s) * self.period_s

    def following(self, now: float) -> float:
        """The next time after `now`."""
        return self.latest(now) + self.period_s

    def due(self, now: float, last: float | None, watched_since: float) -> Due | None:
        """What is to be run now: however many times have passed, one run.

        Args:
            last: the time that the newest run was for; None: there was none.
            watched_since: when the pipeline was first started; what was before that is not missed.
        """
        newest = self.latest(now)
        if last is None and self.at_once:
            return Due(newest, 0)
        before = self.latest(watched_since if last is None else last)
        return Due(newest, round((newest - before) / self.period_s) - 1) if newest > before else None
