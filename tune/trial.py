"""One trial: fit a configuration before validation, judge it there. Plain Python; Ray stays in `sweep.py`."""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app.errors import MantaError
from app.evaluation.protocols import Evaluation, next_event
from app.models.candidate import CandidateModel, StopFitting
from app.models.families import FAMILIES, make
from app.models.interactions import Catalogue, Interactions

# Called with what is known after a pass, and at the end with `final: True`.
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class SharedData:
    """What all trials of a sweep look at; it travels once, through the object store.

    Attributes:
        interactions: all events that may be looked at: histories of cases come from these.
        n_fit: the oldest events, which trials fit on.
        cases: int64, positions of the validation cases.
        history_limit: newest events of a history that models see.
    """

    interactions: Interactions
    catalogue: Catalogue
    n_fit: int
    cases: NDArray[np.int64]
    history_limit: int

    @property
    def fit(self) -> Interactions:
        """The events to fit on (views, no copies)."""
        return self.interactions.first(self.n_fit)

    def judge(self, model: CandidateModel, seed: int) -> Evaluation:
        """Next-event metrics on the validation cases."""
        return next_event(model, self.interactions, self.cases, history_limit=self.history_limit, seed=seed)


@dataclass(frozen=True, slots=True)
class Rungs:
    """The passes after which a trial is judged on its way: grace, grace × reduction, and so on."""

    grace: int
    reduction: float

    def __contains__(self, done: object) -> bool:
        rung: float = self.grace
        while isinstance(done, int) and math.ceil(rung) < done:
            rung *= self.reduction
        return done == math.ceil(rung)


def cap_threads(cpus: float) -> None:
    """Caps this process's BLAS, OpenMP and torch pools to the CPUs it has reserved (at least one thread)."""
    threads = max(1, int(cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threadpool_limits(threads)
    torch.set_num_threads(threads)


def fit_and_judge(
    family: str,
    params: Mapping[str, Any],
    shared: SharedData,
    *,
    metric: str,
    seed: int,
    report: Report,
    rungs: Rungs | None = None,
    save_to: Path | None = None,
) -> None:
    """Fits one configuration and reports it; a result is a function of (configuration, seed, data) alone.

    Args:
        report: gets `pass, value, metrics, fit_s, evaluate_s, bytes, final`; a stopped trial does not return from it.
        rungs: where an iterative family is judged on its way; None: at the end alone.
        save_to: folder for the fitted model, which appears there whole or not at all.

    Raises:
        MantaError: the metric is not finite: the configuration diverged.
    """
    begun, judging, passes, last = time.perf_counter(), 0.0, 0, math.nan

    def judged(model: CandidateModel, final: bool) -> None:
        nonlocal judging, last
        fitted = time.perf_counter() - begun - judging
        start = time.perf_counter()
        metrics = shared.judge(model, seed).metrics
        judging += time.perf_counter() - start
        last = metrics[metric]
        if not math.isfinite(last):
            raise MantaError(f"{family}: diverged after pass {passes}: {metric} is {last}")
        size = save_model(model, save_to) if final and save_to is not None else None
        report(
            {
                "pass": passes,
                "value": last,
                "metrics": metrics,
                "fit_s": fitted,
                "evaluate_s": judging,
                "bytes": size,
                "final": final,
            }
        )

    def progress(done: int, model: CandidateModel) -> None:
        nonlocal passes
        passes = done
        if rungs is not None and done in rungs:
            judged(model, final=False)

    model = make(family, params)
    try:
        model.fit(shared.fit, shared.catalogue, seed=seed, progress=progress if FAMILIES[family].iterative else None)
    except FloatingPointError as error:
        raise MantaError(f"{family}: diverged after pass {passes}: {error}") from None
    judged(model, final=True)


def refit(
    family: str, params: Mapping[str, Any], data: Interactions, catalogue: Catalogue, *, seed: int, passes: int = 0
) -> CandidateModel:
    """The same configuration fitted on other data; `passes` > 0 stops an iterative family where its trial ended."""

    def progress(done: int, model: CandidateModel) -> None:
        del model
        if passes and done >= passes:
            raise StopFitting

    return make(family, params).fit(
        data, catalogue, seed=seed, progress=progress if FAMILIES[family].iterative else None
    )


def save_model(model: CandidateModel, folder: Path) -> int:
    """Writes the model beside and renames it into place; returns its bytes."""
    beside = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.save(beside)
    size = sum(file.stat().st_size for file in beside.rglob("*") if file.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return size
