"""One trial: fit a configuration before validation, judge it there. Plain Python; Ray stays in `sweep.py`."""

import errno
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits

from app.errors import MantaError
from app.evaluation.protocols import Evaluation, Scorer, next_event
from app.models.candidate import CandidateModel, StopFitting
from app.models.families import FAMILIES, make
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.warm import WarmModel, rows_before
from tune.objective import PLAIN, Objective, latency_of

Report = dict[str, Any]  # what is known of a trial
T = TypeVar("T")


class Diverged(MantaError):
    """A model's scores are no finite numbers."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A trial to run: configuration `number` of a family; `params` None: not proposed yet."""

    family: str
    number: int
    params: dict[str, Any] | None = None
    attempts: int = 0


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
        """Next-event metrics on the validation cases.

        Raises:
            Diverged: a score is NaN or infinite.
        """
        return next_event(_checked(model), self.interactions, self.cases, history_limit=self.history_limit, seed=seed)

    def check(self, model: CandidateModel) -> None:
        """Raises Diverged where the model's scores of one case are NaN or infinite."""
        _checked(model)(self.interactions.histories_before(self.cases[:1]).last(self.history_limit))


def _checked(model: CandidateModel) -> Scorer:
    """The model's scores; what is not a finite number would pass for the best of ranks."""

    def score(histories: Histories) -> NDArray[np.float32]:
        scores = model.score(histories)
        if not math.isfinite(scores.sum()) and not np.isfinite(scores).all():
            raise Diverged("a score is NaN or infinite")
        return scores

    return score


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
    report: Callable[[Report], None],
    rungs: Rungs | None = None,
    save_to: Path | None = None,
    objective: Objective = PLAIN,
    probes: int = 0,
) -> Report:
    """Fits one configuration and judges it; a result is a function of (configuration, seed, data) alone.

    Args:
        report: gets what is known at a rung; may raise, to end it there.
        rungs: where an iterative family is judged on its way; None: at the end alone.
        save_to: folder for the fitted model, which appears there whole or not at all.
        objective: what the value is made of.
        probes: single requests by which serving latency is measured; 0: it is not.

    Returns:
        `pass, value, metrics, fit_s, evaluate_s, bytes, latency_ms, note, seconds`. A model that cannot be saved for
        want of room is a result all the same: `note` says so.

    Raises:
        MantaError: the configuration diverged, or its family refuses the data.
    """
    began, passes, bare = time.perf_counter(), 0, 0.0  # bare: seconds since then that were not spent on fitting
    seconds = {"fit_s": 0.0, "evaluate_s": 0.0, "measure_s": 0.0, "save_s": 0.0}

    def timed(kind: str, work: Callable[[], T]) -> T:
        nonlocal bare
        start = time.perf_counter()
        try:
            return work()
        finally:
            spent = time.perf_counter() - start
            seconds[kind] += spent
            bare += spent

    def judged(model: CandidateModel, final: bool) -> Report:
        seconds["fit_s"] = time.perf_counter() - began - bare
        metrics = timed("evaluate_s", lambda: shared.judge(model, seed).metrics)
        size, note, latency = None, None, None
        if final and save_to is not None:
            try:
                size = timed("save_s", lambda: save_model(model, save_to))
            except OSError as error:
                note = f"not saved: {error.strerror or error}"
        if probes and (final or objective.latency_ms):
            latency = timed("measure_s", lambda: latency_of(model, shared, probes))
        if size is None and objective.megabyte:
            size = timed("measure_s", lambda: size_of(model))
        return {
            "pass": passes,
            "value": objective.value(metrics[metric], latency, size),
            "metrics": metrics,
            "fit_s": seconds["fit_s"],
            "evaluate_s": seconds["evaluate_s"],
            "bytes": size,
            "latency_ms": latency,
            "note": note,
            "seconds": seconds,
        }

    def progress(done: int, model: CandidateModel) -> None:
        nonlocal passes, bare
        passes = done
        timed("evaluate_s", lambda: shared.check(model))
        if rungs is not None and done in rungs:
            found = judged(model, final=False)
            start = time.perf_counter()
            report(found)
            bare += time.perf_counter() - start

    model = make(family, params)
    try:
        model.fit(shared.fit, shared.catalogue, seed=seed, progress=progress if FAMILIES[family].iterative else None)
        return judged(model, final=True)
    except FloatingPointError as error:
        raise MantaError(f"{family}: diverged after pass {passes}: {error}") from None
    except Diverged as error:
        raise MantaError(
            f"{family}: diverged after pass {passes}: {error}" if passes else f"{family}: {error}"
        ) from None


def refit(
    family: str,
    params: Mapping[str, Any],
    data: Interactions,
    catalogue: Catalogue,
    *,
    seed: int,
    passes: int = 0,
    before: tuple[WarmModel, Catalogue] | None = None,
) -> CandidateModel:
    """The same configuration fitted on other data.

    Args:
        passes: above 0: stops an iterative family where its trial ended.
        before: a model of the family and its items, to begin at where its sizes are the same.
    """

    def progress(done: int, model: CandidateModel) -> None:
        del model
        if passes and done >= passes:
            raise StopFitting

    model = make(family, params)
    if before is not None and isinstance(model, WarmModel):
        with suppress(MantaError):  # of other sizes: from nothing
            model.begin_at(before[0], rows_before(before[1], catalogue))
    return model.fit(data, catalogue, seed=seed, progress=progress if FAMILIES[family].iterative else None)


def save_model(model: CandidateModel, folder: Path) -> int:
    """Writes the model beside and renames it into place; returns its bytes.

    Raises:
        OSError: there is no room; nothing is left behind, and what was there stays.
    """
    beside = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        size = _saved(model, beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return size


def size_of(model: CandidateModel) -> int:
    """The bytes that the model takes when saved."""
    with tempfile.TemporaryDirectory(prefix="manta-size-") as folder:
        return _saved(model, Path(folder))


def _saved(model: CandidateModel, folder: Path) -> int:
    """Saves into an existing folder; its bytes. safetensors has an error of its own for a full disk."""
    try:
        model.save(folder)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
