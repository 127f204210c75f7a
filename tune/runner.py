"""A trial as a worker does it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tune.journal import trial_name
from tune.objective import Objective
from tune.trial import Configuration, Report, Rungs, SharedData, fit_and_judge


@dataclass(frozen=True, slots=True)
class TrialRunner:
    """What all trials of a sweep have in common; it travels once, through the object store."""

    shared: SharedData
    metric: str
    seed: int
    rungs: Rungs | None
    models: str
    objective: Objective
    probes: int

    def run(self, job: Configuration, report: Callable[[Report], None]) -> Report:
        """Fits and judges one configuration."""
        return fit_and_judge(
            job.family,
            job.params or {},
            self.shared,
            metric=self.metric,
            seed=self.seed,
            report=report,
            rungs=self.rungs,
            save_to=Path(self.models) / trial_name(job.family, job.number),
            objective=self.objective,
            probes=self.probes,
        )
