"""A sweep: many configurations of many families under Ray Tune, durable as it goes, ending in a registered bundle."""

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.trainable import wrap_function

from app.errors import MantaError, NotFound, SettingsError
from app.settings import Settings
from tune.dataset import TrainingSet, load_training_set
from tune.journal import Journal, TrialRecord, best_by_family, trial_name
from tune.package import Packaged, package
from tune.report import SweepReport, SweepState, Watch, write_report
from tune.space import SweepFile, load_sweep, parse_sweep
from tune.steering import FamilyScheduler, Recorder, SweepSearcher
from tune.trial import Rungs, SharedData
from tune.worker import manta_trial

RECORD = "sweep.json"

# Ray Tune's own files (CSV, JSON, TensorBoard, its state) are not written: the journal has what they have.
TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_sweep(
    settings: Settings,
    home: Path,
    file: Path | None,
    resume: str | None = None,
    progress: Watch | None = None,
    *,
    data: TrainingSet | None = None,
    register: bool = True,
) -> SweepReport:
    """Runs a sweep on the Ray that the caller is connected to, builds its best bundle and registers it, not live.

    Args:
        file: the sweep file; may be None with `resume`.
        resume: id of an interrupted sweep: trials that had finished are not run again.
        progress: hears of every change (`report.live` makes one for a terminal).
        data: the training set; default: the lake's present snapshot (resumed: the snapshot it began with).
        register: False: stop after the leaderboard.

    Raises:
        SettingsError: the file is wrong, or differs from that of the sweep to resume.
        NotFound: no such sweep to resume.
        MantaError: no trial of any family succeeded, or there is nothing to learn from.
    """
    if not ray.is_initialized():
        raise MantaError("sweep: found no Ray, wanted a connected one (manta up, or `attach`)")
    begun = time.perf_counter()
    folder, sweep, recorded = _opened(settings, home, file, resume)
    journal = Journal(folder / "trials.jsonl")
    planned = 0

    def tell(step: str) -> None:
        if progress is not None:
            trials = list(journal.trials.values())
            progress(SweepState(folder.name, step, str(sweep.metric), max(planned, len(trials)), trials))

    tell("reading the lake")
    found = data if data is not None else load_training_set(settings, home, recorded.get("snapshot"))
    _record(folder, sweep, found, recorded)
    seconds = {"data": time.perf_counter() - begun}
    searcher = SweepSearcher(sweep, journal.finished)
    planned = searcher.planned
    begun = time.perf_counter()
    tell("trials")
    if searcher.queue:
        _run_trials(settings, folder, sweep, found, journal, searcher, lambda: tell("trials"))
    seconds["trials"] = time.perf_counter() - begun
    best = best_by_family(journal.trials.values())
    if not best:
        errors = {trial.error for trial in journal.trials.values() if trial.error}
        raise MantaError(f"sweep {folder.name}: no trial succeeded: {'; '.join(sorted(errors)) or 'the budget ended'}")
    _drop_models(folder, best)
    begun = time.perf_counter()
    packaged = Packaged(None, {})
    if register:
        cases = shared_data(settings, sweep, found).cases
        packaged = package(settings, home, folder, sweep, found, cases, best, tell)
    seconds["package"] = time.perf_counter() - begun
    report = SweepReport(
        folder.name,
        folder,
        str(sweep.metric),
        int(sweep.seed or 0),
        found.snapshot,
        found.data_hash,
        list(journal.trials.values()),
        best,
        seconds,
        packaged.bundle,
        packaged.figures,
        order_mattered=sweep.max_concurrent != 1 and (sweep.search == "optuna" or _stops_early(sweep)),
    )
    write_report(report)
    tell("done")
    return report


def _opened(
    settings: Settings, home: Path, file: Path | None, resume: str | None
) -> tuple[Path, SweepFile, dict[str, Any]]:
    """(folder, sweep, what was recorded of an interrupted one)."""
    sweeps = home / "sweeps"
    if resume is None:
        if file is None:
            raise SettingsError("manta sweep", "FILE", None, "a sweep file, or --resume ID")
        sweep = load_sweep(file, settings)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = sweeps / f"{sweep.name}-{stamp}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True)
        return folder, sweep, {}
    folder = sweeps / resume
    try:
        recorded: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        known = sorted(found.name for found in sweeps.iterdir()) if sweeps.is_dir() else []
        raise NotFound(f"no sweep {resume!r} to resume under {sweeps}; found {', '.join(known) or 'none'}") from None
    sweep = parse_sweep(recorded["file"], str(folder / RECORD), settings)
    if file is not None and load_sweep(file, settings) != sweep:
        raise SettingsError(str(file), "(file)", "another sweep", f"what {resume} began with ({folder / RECORD})")
    return folder, sweep, recorded


def _record(folder: Path, sweep: SweepFile, data: TrainingSet, recorded: Mapping[str, Any]) -> None:
    """Writes what a resumed run needs, or checks that the data are those the sweep began with."""
    if recorded:
        if recorded["data_hash"] != data.data_hash:
            raise MantaError(
                f"sweep {folder.name}: found data {data.data_hash[:12]}, wanted {recorded['data_hash'][:12]} "
                f"of snapshot {recorded['snapshot']}: results of both cannot be compared; start a new sweep"
            )
        return
    record = {
        "file": sweep.model_dump(mode="json"),
        "snapshot": data.snapshot,
        "data_hash": data.data_hash,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    beside = folder / f"{RECORD}.tmp"
    beside.write_text(json.dumps(record, indent=1))
    beside.rename(folder / RECORD)


def shared_data(settings: Settings, sweep: SweepFile, data: TrainingSet) -> SharedData:
    """What the trials look at: all events before validation to fit on, and validation cases drawn by the seed."""
    split = data.split(settings.learn)
    cases = split.validation_cases
    if len(cases) > settings.learn.validation_users:
        random = np.random.default_rng(int(sweep.seed or 0))
        cases = np.sort(random.choice(cases, settings.learn.validation_users, replace=False))
    if not len(split.fit) or not len(cases):
        raise MantaError(f"sweep: found {len(data.interactions)} events, wanted enough for fit and validation parts")
    return SharedData(data.interactions, data.catalogue, len(split.before_validation), cases, sweep.history_limit)


def _run_trials(
    settings: Settings,
    folder: Path,
    sweep: SweepFile,
    data: TrainingSet,
    journal: Journal,
    searcher: SweepSearcher,
    told: Callable[[], None],
) -> None:
    scheduler = FamilyScheduler(sweep, journal.finished)
    gpus = float(ray.cluster_resources().get("GPU", 0.0))

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        plan = sweep.families[config["family"]]
        wanted = {"CPU": plan.cpus or sweep.cpus}
        if plan.gpus and gpus:
            wanted["GPU"] = min(plan.gpus, gpus)
        return tune.PlacementGroupFactory([wanted])

    trainable = tune.with_parameters(
        manta_trial,
        shared=shared_data(settings, sweep, data),
        metric=str(sweep.metric),
        seed=int(sweep.seed or 0),
        rungs=Rungs(sweep.grace, sweep.reduction) if _stops_early(sweep) else None,
        models=str(folder / "models"),
    )
    worker = wrap_function(tune.with_resources(trainable, resources))
    worker.__name__ = worker.__qualname__ = "Trial"  # how Ray's dashboard and `ps` call the workers
    os.environ.update(TUNE_VARIABLES)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        worker,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=len(searcher.queue),
            max_concurrent_trials=sweep.max_concurrent,
            reuse_actors=True,
            time_budget_s=sweep.budget_s,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[Recorder(journal, scheduler, told)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    tuner.fit()
    shutil.rmtree(folder / "tune", ignore_errors=True)


def _name(trial: Any) -> str:
    return trial_name(trial.config["family"], trial.config["number"])


def _stops_early(sweep: SweepFile) -> bool:
    return sweep.scheduler == "asha"


def _drop_models(folder: Path, best: Mapping[str, TrialRecord]) -> None:
    """Of the fitted models only the best of each family stay."""
    kept = {trial.name for trial in best.values()}
    models = folder / "models"
    for found in models.iterdir() if models.is_dir() else ():
        if found.name not in kept:
            shutil.rmtree(found, ignore_errors=True)
