"""A sweep: many configurations of many families on one Ray, durable as it goes, ending in a registered bundle."""

import json
import math
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray

from app.errors import MantaError, NotFound, SettingsError
from app.settings import Settings
from tune.dataset import TrainingSet, load_training_set
from tune.journal import Journal, best_by_family
from tune.objective import Objective
from tune.package import Packaged, package
from tune.pool import Pool
from tune.report import SweepReport, SweepState, Watch, write_report
from tune.rungs import stops_early
from tune.runner import TrialRunner
from tune.segment_runner import SegmentRunner, model_folder
from tune.segment_trials import SegmentJournal, SegmentTrials, best_by_segment
from tune.segments import SegmentedData, Segments, by_item, by_mark
from tune.space import SweepFile, load_sweep, parse_sweep
from tune.steering import SweepSearcher, Trials, shape_of
from tune.trial import Rungs, SharedData

RECORD = "sweep.json"


class NothingFound(MantaError):
    """A sweep ended without a single trial that succeeded."""


def run_sweep(
    settings: Settings,
    home: Path,
    file: Path | None,
    resume: str | None = None,
    progress: Watch | None = None,
    *,
    data: TrainingSet | None = None,
    register: bool = True,
    under: str | None = None,
    until: float | None = None,
) -> SweepReport:
    """Runs a sweep on the Ray that the caller is connected to, builds its best bundle and registers it, not live.

    Args:
        file: the sweep file; may be None with `resume`.
        resume: id of an interrupted sweep: trials that had finished are not run again.
        progress: hears of every change (`report.live` makes one for a terminal).
        data: the training set; default: the lake's present snapshot (resumed: the snapshot it began with).
        register: False: stop after the leaderboard.
        under: the id of the sweep; where it was begun before, it is resumed.
        until: in seconds since 1970: then no trial goes on, as if `budget_s` had ended; the best so far counts.

    Raises:
        SettingsError: the file is wrong, or differs from that of the sweep to resume.
        NotFound: no such sweep to resume.
        NothingFound: no trial of any family succeeded.
        MantaError: there is nothing to learn from.
    """
    if not ray.is_initialized():
        raise MantaError("sweep: found no Ray, wanted a connected one (manta up, or `attach`)")
    begun = time.perf_counter()
    folder, sweep, recorded = _opened(settings, home, file, resume, under)
    ends = math.inf if until is None else time.monotonic() + until - time.time()
    journal = Journal(folder / "trials.jsonl")
    planned = 0

    def tell(step: str) -> None:
        if progress is not None:
            trials = list(journal.trials.values())
            progress(SweepState(folder.name, step, str(sweep.metric), max(planned, len(trials)), trials))

    tell("reading the lake")
    found = data if data is not None else _read(settings, home, sweep, recorded.get("snapshot"))
    _record(folder, sweep, found, recorded)
    seconds = {"data": time.perf_counter() - begun}
    searcher = SweepSearcher(sweep, journal.finished)
    planned = searcher.planned
    begun, losses = time.perf_counter(), dict[str, float]()
    by_segment: list[dict[str, Any]] = []
    tell("trials")
    if sweep.segment is not None:
        losses, by_segment = _run_segments(settings, folder, sweep, found, journal, searcher, ends, tell)
    elif searcher.queue:
        losses = _run_trials(settings, folder, sweep, found, journal, searcher, ends, lambda: tell("trials"))
    seconds["trials"] = time.perf_counter() - begun
    best = best_by_family(journal.trials.values())
    if not best and not any(one["best"] for one in by_segment):
        errors = {trial.error for trial in journal.trials.values() if trial.error}
        raise NothingFound(
            f"sweep {folder.name}: no trial succeeded: {'; '.join(sorted(errors)) or 'the budget ended'}"
        )
    if sweep.segment is None:
        _drop_models(folder / "models", {trial.name for trial in best.values()})
    begun = time.perf_counter()
    packaged = Packaged(None, {})
    if register and sweep.segment is None:
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
        order_mattered=order_matters(sweep),
        losses=losses,
        segments=by_segment,
    )
    write_report(report)
    tell("done")
    return report


def _opened(
    settings: Settings, home: Path, file: Path | None, resume: str | None, under: str | None
) -> tuple[Path, SweepFile, dict[str, Any]]:
    """(folder, sweep, what was recorded of an interrupted one)."""
    sweeps = home / "sweeps"
    if under is not None and (sweeps / under / RECORD).exists():
        resume = under
    if resume is None:
        if file is None:
            raise SettingsError("manta sweep", "FILE", None, "a sweep file, or --resume ID")
        sweep = load_sweep(file, settings)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = sweeps / (under or f"{sweep.name}-{stamp}-{secrets.token_hex(2)}")
        folder.mkdir(parents=True, exist_ok=under is not None)
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


def _read(settings: Settings, home: Path, sweep: SweepFile, snapshots: str | None) -> TrainingSet:
    marks = {"events": "event_mark", "users": "user_mark"}
    asked = {} if sweep.segment is None else {marks.get(sweep.segment.of, ""): sweep.segment.by}
    asked.pop("", None)
    return load_training_set(settings, home, snapshots, **asked)


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
        "file": sweep.model_dump(mode="json", warnings=False),
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


def order_matters(sweep: SweepFile) -> bool:
    """Whether results may depend on how many trials ran at once, and on which ended first.

    Grid and random search without early stop never ask what came out before; the others do, but in one order alone
    where trials run one at a time. Measured latency differs from run to run whatever the order.
    """
    learns = sweep.search in ("optuna", "population") or stops_early(sweep)
    return (learns and sweep.max_concurrent != 1) or sweep.objective.latency_ms > 0


def _run_trials(
    settings: Settings,
    folder: Path,
    sweep: SweepFile,
    data: TrainingSet,
    journal: Journal,
    searcher: SweepSearcher,
    ends: float,
    told: Callable[[], None],
) -> dict[str, float]:
    """Runs what has not finished; where the time of the workers went."""
    runner = TrialRunner(
        shared_data(settings, sweep, data),
        str(sweep.metric),
        int(sweep.seed or 0),
        Rungs(sweep.grace, sweep.reduction) if stops_early(sweep) else None,
        str(folder / "models"),
        Objective(sweep.objective.latency_ms, sweep.objective.megabyte),
        sweep.latency_probes,
    )
    gpus = float(ray.cluster_resources().get("GPU", 0.0))
    trials = Trials(sweep, journal, searcher, lambda family: shape_of(sweep, family, gpus), told)
    pool = Pool(ray.put(runner), folder.name, sweep.max_concurrent, prices=(sweep.cpu_hour, sweep.gpu_hour))
    if not pool.run(trials, _budget(sweep, journal, pool, ends)):
        trials.cut()
    return pool.losses.as_json() | {"cost": round(pool.cost, 6)}


def segments_of(settings: Settings, sweep: SweepFile, data: TrainingSet) -> Segments:
    """The segments that the file asks for and that are large enough.

    Raises:
        MantaError: there are none, or no such column.
    """
    plan = sweep.segment
    assert plan is not None
    n_fit = len(data.split(settings.learn).before_validation)
    if plan.of == "items":
        return by_item(data.interactions, data.catalogue, plan.by, n_fit, plan.least_events, plan.values)
    if data.marks is None or data.marks.null_count == len(data.marks):
        raise MantaError(f"sweep: segment.by: found no value under {plan.by!r}, wanted some of {plan.of} to have one")
    return by_mark(data.marks, n_fit, plan.least_events, plan.values)


def _run_segments(
    settings: Settings,
    folder: Path,
    sweep: SweepFile,
    data: TrainingSet,
    journal: Journal,
    searcher: SweepSearcher,
    ends: float,
    tell: Callable[[str], None],
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Runs what has not finished: where the time of the workers went, and the best of each segment."""
    plan = sweep.segment
    assert plan is not None
    segments, results = segments_of(settings, sweep, data), SegmentJournal(folder / "segments.jsonl")
    n_fit, seed = len(data.split(settings.learn).before_validation), int(sweep.seed or 0)
    cut = SegmentedData(data.interactions, data.catalogue, segments, n_fit, plan.cases, sweep.history_limit, seed)
    runner = SegmentRunner(cut, str(sweep.metric), seed, str(folder / "models"))
    whole = ray.cluster_resources()
    gpus = float(whole.get("GPU", 0.0))
    workers = sweep.max_concurrent or max(1, int(whole.get("CPU", 1.0) / sweep.cpus))
    models = searcher.planned * len(segments)

    def told() -> None:
        tell(f"{trials.done:,} of {models:,} models of {len(segments):,} segments")

    trials = SegmentTrials(
        sweep, segments, journal, results, searcher, lambda name: shape_of(sweep, name, gpus), workers, lambda: told()
    )
    pool = Pool(ray.put(runner), folder.name, sweep.max_concurrent, prices=(sweep.cpu_hour, sweep.gpu_hour))
    if not pool.run(trials, _budget(sweep, journal, pool, ends)):
        trials.cut()
    best = best_by_segment(segments, results)
    for one in best:
        _drop_models(model_folder(str(folder / "models"), "", one["number"]), {one["best"]})
    return pool.losses.as_json() | {"cost": round(pool.cost, 6)}, best


def _budget(sweep: SweepFile, journal: Journal, pool: Pool, ends: float) -> Callable[[], bool]:
    """Says when time or money is spent; of an interrupted sweep the money of what had ended counts.

    `ends`: by the monotonic clock, whatever the file's budget.
    """
    deadline = ends if sweep.budget_s is None else min(ends, time.monotonic() + sweep.budget_s)
    most = math.inf if sweep.budget_cost is None else sweep.budget_cost
    before = sum(trial.cost for trial in journal.finished)
    return lambda: time.monotonic() > deadline or before + pool.cost > most


def _drop_models(models: Path, kept: Collection[str | None]) -> None:
    """Of the fitted models in a folder only some stay."""
    for found in models.iterdir() if models.is_dir() else ():
        if found.name not in kept:
            shutil.rmtree(found, ignore_errors=True)
