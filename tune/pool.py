"""The workers of a sweep: actors started beside each other, kept for many jobs, replaced when they die."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import ray
from ray.exceptions import RayActorError, RayError

from app.errors import MantaError
from tune.head import Head
from tune.losses import Losses
from tune.trial import Report
from tune.worker import Trial

LOOK_S = 1.0  # how long the driver waits for news before it looks at the clock and the cluster
ATTEMPTS_TO_START = 3  # workers in a row that may die while they start


class Shape(NamedTuple):
    """What a worker reserves."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work for one worker: `name` is its task's on the dashboard, `load` what the runner gets."""

    name: str
    load: Any


class Work(Protocol):
    """What is to be done, and who hears how it went."""

    def waiting(self) -> Mapping[Shape, int]:
        """Jobs not yet handed out, by shape, the next to be done first."""
        ...

    def take(self, shape: Shape) -> Job | None:
        """The next job of that shape."""
        ...

    def told(self, job: Job, report: Report) -> bool:
        """A report on the way (`ends` is absent): whether to stop the job here. A last one: the answer is ignored."""
        ...

    def died(self, job: Job, why: str) -> None:
        """The job's process is gone."""
        ...


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    shape: Shape
    hired: float
    busy: bool = True  # starting is being busy
    job: Job | None = None
    ready: float = 0.0
    began: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)


class Pool:
    """Does all of a `Work` with as many workers as the cluster has room for."""

    def __init__(self, runner: Any, sweep: str, limit: int | None, *, prices: tuple[float, float] = (0.0, 0.0)) -> None:
        """`runner`: reference of a `Runner`. `prices`: of a CPU and of a GPU for an hour."""
        self._runner, self._sweep, self._limit, self._prices = runner, sweep, limit, prices
        self._workers: list[_Worker] = []
        self._asked: dict[Any, _Worker] = {}
        self._hired = self._stillborn = 0
        self._looked, self._room = 0.0, Shape(0.0, 0.0)
        self._head = Head()
        self._paid = 0.0
        self.losses = Losses()

    @property
    def cost(self) -> float:
        """What all workers have cost so far, from their start on."""
        return self._paid + sum(self._cost_of(worker) for worker in self._workers)

    def run(self, work: Work, over: Callable[[], bool]) -> bool:
        """True once everything is done; False where `over` said that it is enough: what ran then is broken off.

        Raises:
            MantaError: no worker can be started, or Ray is gone.
        """
        self.losses.begin()
        try:
            while True:
                if not self._head.look(self._sweep):
                    time.sleep(LOOK_S / 4)
                    continue
                if not any(worker.job for worker in self._workers) and not any(work.waiting().values()):
                    return True
                if over():  # before a worker is started for what has no time left
                    return False
                self._hire(work)
                self._hand_out(work)
                self._hear(work)
        except RayError as error:
            again = f"`--resume {self._sweep}` goes on from there"
            raise MantaError(f"sweep {self._sweep}: Ray failed ({_first_line(error)}); {again}") from error
        finally:
            self.losses.end()
            for worker in list(self._workers):
                self._dismiss(worker)

    def _hire(self, work: Work) -> None:
        """A worker for each job, as far as there is room; one more may wait for room, so that a cluster grows."""
        for shape, jobs in work.waiting().items():
            have = sum(worker.shape == shape and worker.job is None for worker in self._workers)
            while have < jobs and (self._limit is None or len(self._workers) < self._limit):
                if not self._fits(shape):
                    idle = next((w for w in self._workers if not w.busy and not work.waiting().get(w.shape)), None)
                    if idle is not None:
                        self._dismiss(idle)
                        continue
                    if any(worker.busy and worker.job is None for worker in self._workers):
                        break
                self._start(shape)
                have += 1
                if not self._fits(shape):
                    break

    def _fits(self, shape: Shape) -> bool:
        if time.monotonic() - self._looked > LOOK_S:
            whole = ray.cluster_resources()
            self._looked, self._room = time.monotonic(), Shape(whole.get("CPU", 0.0), whole.get("GPU", 0.0))
        cpus = sum(worker.shape.cpus for worker in self._workers) + shape.cpus
        gpus = sum(worker.shape.gpus for worker in self._workers) + shape.gpus
        return cpus <= self._room.cpus + 1e-6 and gpus <= self._room.gpus + 1e-6

    def _start(self, shape: Shape) -> None:
        self._hired += 1
        actor = (
            ray.remote(Trial)
            .options(num_cpus=shape.cpus, num_gpus=shape.gpus, name=f"{self._sweep} worker {self._hired}")
            .remote([self._runner], shape.cpus)
        )
        worker = _Worker(actor, shape, time.monotonic())
        self._workers.append(worker)
        self._asked[actor.ready.remote()] = worker

    def _dismiss(self, worker: _Worker) -> None:
        self._paid += self._cost_of(worker)
        self._workers.remove(worker)
        self._asked = {asked: held for asked, held in self._asked.items() if held is not worker}
        self.losses.left(worker)
        if self._head.answers:
            ray.kill(worker.actor)

    def _cost_of(self, worker: _Worker) -> float:
        rate = worker.shape.cpus * self._prices[0] + worker.shape.gpus * self._prices[1]
        return rate * (time.monotonic() - worker.ready) / 3600 if worker.ready else 0.0

    def _hand_out(self, work: Work) -> None:
        for worker in self._workers:
            if not worker.busy and (job := work.take(worker.shape)) is not None:
                worker.busy, worker.job, worker.began = True, job, time.monotonic()
                self._asked[worker.actor.begin.options(name=job.name).remote(job.load, job.name)] = worker

    def _hear(self, work: Work) -> None:
        if not self._asked:
            time.sleep(0.01)
            return
        done, _ = ray.wait(list(self._asked), num_returns=1, timeout=LOOK_S)
        for asked in done:
            worker = self._asked.pop(asked)
            try:
                report = ray.get(asked)
            except RayActorError as error:
                self._lost(work, worker, _first_line(error))
                continue
            if worker.job is None:
                worker.busy, worker.ready, self._stillborn = False, time.monotonic(), 0
                self.losses.started(worker, report["data_s"])
            elif not report.get("ends"):
                halt = work.told(worker.job, report)
                self._asked[worker.actor.proceed.options(name=worker.job.name).remote(halt)] = worker
            else:
                job, worker.job, worker.busy = worker.job, None, False
                self.losses.ended(worker, report)
                work.told(job, report)

    def _lost(self, work: Work, worker: _Worker, why: str) -> None:
        job, worker.job = worker.job, None
        self._dismiss(worker)
        if job is not None:
            work.died(job, f"the trial's process died ({why})")
            return
        self._stillborn += 1
        if self._stillborn >= ATTEMPTS_TO_START:
            raise MantaError(f"sweep {self._sweep}: {self._stillborn} workers in a row died while starting: {why}")


def counted(shapes: list[Shape]) -> Mapping[Shape, int]:
    """How many of each, in the order of the first of each."""
    return Counter(shapes)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
