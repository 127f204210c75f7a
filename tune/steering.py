"""The trials of a sweep: which comes next, what becomes of each result, and which is tried once more."""

import time
from collections.abc import Callable, Mapping, Sequence

from app.models.families import FAMILIES
from tune.journal import Journal, TrialRecord, trial_name
from tune.pool import Job, Shape, counted
from tune.rungs import FamilyScheduler
from tune.search import Proposer, proposer_of
from tune.space import SweepFile
from tune.trial import Configuration, Report


class SweepSearcher:
    """Hands out the trials that have not finished, round by round over the families, the dearest family first."""

    def __init__(self, sweep: SweepFile, finished: Sequence[TrialRecord]) -> None:
        self._proposers: dict[str, Proposer] = {name: proposer_of(sweep, name) for name in sweep.families}
        for record in finished:
            self._proposers[record.family].tell(record.number, record.params, record.value)
        done = {record.name for record in finished}
        order = sorted(
            (number, -FAMILIES[family].fit_cost, family)
            for family, proposer in self._proposers.items()
            for number in range(proposer.count)
            if trial_name(family, number) not in done
        )
        self.queue = [Configuration(family, number) for number, _, family in order]
        self.planned = len(self.queue) + len(done)

    def suggest(self, families: Sequence[str]) -> Configuration | None:
        """The next trial of one of the families."""
        place = next((place for place, found in enumerate(self.queue) if found.family in families), None)
        if place is None:
            return None
        found = self.queue.pop(place)
        if found.params is not None:
            return found
        return Configuration(found.family, found.number, self._proposers[found.family].propose(found.number))

    def again(self, trial: Configuration) -> None:
        """Puts a trial that failed in front of all others, with the same parameters."""
        self.queue.insert(0, Configuration(trial.family, trial.number, trial.params, trial.attempts + 1))

    def tell(self, trial: Configuration, value: float | None) -> None:
        """A trial has ended; None: without a value."""
        self._proposers[trial.family].tell(trial.number, trial.params or {}, value)


class Trials:
    """The trials as `Work` of a pool: each result is in the journal before anybody hears of it."""

    def __init__(
        self,
        sweep: SweepFile,
        journal: Journal,
        searcher: SweepSearcher,
        shape_of: Callable[[str], Shape],
        told: Callable[[], None],
    ) -> None:
        self._sweep, self._journal, self._searcher, self._told = sweep, journal, searcher, told
        self._scheduler = FamilyScheduler(sweep, journal.finished)
        self._shapes = {family: shape_of(family) for family in sweep.families}
        self._running: dict[str, tuple[TrialRecord, float]] = {}

    def waiting(self) -> Mapping[Shape, int]:
        return counted([self._shapes[trial.family] for trial in self._searcher.queue])

    def take(self, shape: Shape) -> Job | None:
        trial = self._searcher.suggest([family for family, wanted in self._shapes.items() if wanted == shape])
        if trial is None:
            return None
        assert trial.params is not None
        name = trial_name(trial.family, trial.number)
        record = TrialRecord(name, trial.family, trial.number, trial.params, attempts=trial.attempts + 1)
        self._journal.trials[name] = record
        self._running[name] = record, time.monotonic()
        self._told()
        return Job(name, trial)

    def told(self, job: Job, report: Report) -> bool:
        trial: Configuration = job.load
        record, _ = self._running[job.name]
        if report.get("error"):
            self._failed(trial, record, str(report["error"]), bool(report.get("again")))
            return False
        halt = False
        if report.get("halted"):
            record.state = "stopped"
        else:
            record.take(report)
            if report.get("ends"):
                record.state = "done"
            else:
                halt = self._scheduler.stops(trial.family, trial.number, int(report["pass"]), float(report["value"]))
        if report.get("ends"):
            self._end(trial, record)
        else:
            self._journal.write(record)
            self._told()
        return halt

    def died(self, job: Job, why: str) -> None:
        self._failed(job.load, self._running[job.name][0], why, again=True)

    def cut(self) -> None:
        """The budget has ended: what still runs is written down as it stands."""
        for record, began in self._running.values():
            record.state = "cut"
            self._count(record, began)
            self._journal.write(record)
        self._running.clear()
        self._told()

    def _failed(self, trial: Configuration, record: TrialRecord, why: str, again: bool) -> None:
        if again and trial.attempts < self._sweep.retries:
            del self._running[record.name]
            record.passes.clear()
            self._searcher.again(trial)
            return
        record.state, record.error, record.value = "failed", why, None
        self._end(trial, record)

    def _end(self, trial: Configuration, record: TrialRecord) -> None:
        _, began = self._running.pop(record.name)
        self._count(record, began)
        self._journal.write(record)
        self._searcher.tell(trial, record.value)
        self._told()

    def _count(self, record: TrialRecord, began: float) -> None:
        record.wall_s = time.monotonic() - began
        shape = self._shapes[record.family]
        rate = shape.cpus * self._sweep.cpu_hour + shape.gpus * self._sweep.gpu_hour
        record.cost = rate * record.wall_s / 3600


def shape_of(sweep: SweepFile, family: str, gpus_here: float) -> Shape:
    """What a trial of the family reserves: a GPU, or a share of one, only where the cluster has any."""
    plan = sweep.families[family]
    gpus = min(plan.gpus, gpus_here)
    return Shape(plan.cpus or sweep.cpus, gpus if gpus < 1 else float(int(gpus)))
