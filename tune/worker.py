"""What runs in Ray's workers. Each imports it, so it stays light: neither plots, searchers nor bundles."""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray

from app.errors import MantaError
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue, Interactions
from app.models.warm import WarmModel
from tune.trial import Report, cap_threads, refit


class Runner(Protocol):
    """What a sweep's jobs do: it lies in the object store, each worker reads it once."""

    def run(self, job: Any, report: Callable[[Report], None]) -> Report:
        """Does one job and returns its last report; `report` hands out one on the way (and may not return)."""
        ...


class Halted(Exception):
    """The scheduler goes no further with this job."""


class Trial:
    """An actor that does many jobs, one after the other; the name is what Ray's dashboard and `ps` show.

    A job runs in a thread of its own: at each report it waits until it hears whether to go on.
    """

    def __init__(self, held: list[Any], cpus: float) -> None:
        """`held`: reference of the runner, in a list so that fetching it can be timed here."""
        _give_way()
        begun = time.perf_counter()
        self._cpus, self._name = cpus, ""
        self._runner: Runner = ray.get(held[0])
        self._fetched_s = time.perf_counter() - begun
        self._said: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._answer: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ready(self) -> Report:
        """Where it runs, and the seconds that it took to get the data."""
        return {"pid": os.getpid(), "data_s": self._fetched_s}

    def begin(self, job: Any, name: str) -> Report:
        """Starts a job; its first report. `name`: what the process is called meanwhile."""
        self._name = name
        self._show()
        threading.Thread(target=self._work, args=(job,), daemon=True).start()
        return self._said.get()

    def proceed(self, halt: bool) -> Report:
        """Lets the job go on, or not; its next report."""
        self._show()
        self._answer.put(halt)
        return self._said.get()

    def _show(self) -> None:
        ray._raylet.setproctitle(f"ray::Trial {self._name}")

    def _work(self, job: Any) -> None:
        cap_threads(self._cpus)  # OpenMP counts its threads by the thread that asks for them
        try:
            last = self._runner.run(job, self._reported) | {"ends": True}
        except Halted:
            last = {"ends": True, "halted": True}
        except Exception as error:
            last = {"ends": True, **failure(error)}
        self._said.put(last)

    def _reported(self, report: Report) -> None:
        self._said.put(report)
        if self._answer.get():
            raise Halted


def failure(error: Exception) -> Report:
    """What is told of an error. Manta's own say what is wrong with the configuration or data: again would be the same.

    Any other may be the machine's (memory, disk): `again`.
    """
    known = isinstance(error, MantaError)
    said = str(error) if known else f"{type(error).__name__}: {error}"
    return {"error": (said.splitlines() or [type(error).__name__])[0][:500], "again": not known}


def refit_task(
    shared: tuple[Interactions, Catalogue],
    events: int,
    family: str,
    params: Mapping[str, Any],
    seed: int,
    passes: int,
    before: tuple[WarmModel, Catalogue] | None,
    cpus: float,
) -> CandidateModel:
    """One configuration fitted on the oldest `events` events, as a Ray task; `before`: where to begin."""
    _give_way()
    cap_threads(cpus)
    interactions, catalogue = shared
    return refit(family, params, interactions.first(events), catalogue, seed=seed, passes=passes, before=before)


def _give_way() -> None:
    """Learning takes what answering leaves: a trial's priority is below that of the replicas on its node."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
