"""What the jobs of a pipeline do: each reads its run's document, does one step, and leaves what it found beside it."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from app.bundles.announce import announce
from app.bundles.registry import open_registry
from app.errors import MantaError, SettingsError
from app.events.schema import EVENTS
from app.lake.tables import open_lake
from app.settings import Settings
from tune.ingest import run_ingest
from tune.pipeline.file import parse_pipeline
from tune.pipeline.record import SWEEP, RunRecord, put_result, read_run
from tune.report import Watch
from tune.sweep import NothingFound, run_sweep

Found = dict[str, Any]
# Makes a bundle live on surfaces (none: all that it was built for); the promotion as JSON once it has ended.
Promote = Callable[[str, Sequence[str]], Found]


def run_step(folder: Path, job: str, do: Callable[[RunRecord], Found]) -> Found:
    """Does a step and keeps what it found, or why it failed, where the pipeline reads it.

    Raises:
        Exception: whatever the step raises, once it is kept.
    """
    run = read_run(folder)
    try:
        found = do(run)
    except Exception as error:
        known = isinstance(error, MantaError)
        said = (str(error).splitlines() or [""])[0] if known else f"{type(error).__name__}: {error}"
        put_result(folder, job, {"ok": False, "error": said[:1000], "again": not isinstance(error, SettingsError)})
        raise
    put_result(folder, job, {"ok": True, "result": found})
    return found


def update(settings: Settings, home: Path, run: RunRecord, say: Callable[[str], None]) -> Found:
    """Kafka to lake. `data_time`: the newest commit of this step, or where nothing was new its beginning."""
    plan = parse_pipeline(run.document, run.file).steps.update
    assert plan is not None
    began = time.time()
    report = run_ingest(settings, home, accept_gap=plan.accept_gap)
    say(f"{dict(report.rows)} rows in {report.seconds:.1f} s")
    lake = open_lake(settings, home)
    newest = lake.table(EVENTS).current_snapshot() if lake.exists(EVENTS) else None
    committed = 0.0 if newest is None else newest.timestamp_ms / 1000
    return {
        "data_time": max(began, committed),
        "rows": dict(report.rows),
        "duplicates": report.duplicates,
        "dead_letters": dict(report.dead_letters),
        "commits": report.commits,
    }


def sweep(settings: Settings, home: Path, folder: Path, run: RunRecord, watch: Watch) -> Found:
    """The sweep under the run's own id, so that it resumes; the best so far when its time is up.

    `bundle`: None where there is none, and `reason` says why.
    """
    registry = open_registry(settings, home)
    try:
        made = next((row.id for row in registry.bundles() if row.manifest.get("sweep") == run.id), None)
    finally:
        registry.close()
    if made is not None:  # the job was killed between the bundle and its last word
        return {"sweep": run.id, "bundle": made, "reason": None}
    began = time.time()
    try:
        report = run_sweep(settings, home, folder / SWEEP, progress=watch, under=run.id, until=run.trials_until)
    except NothingFound as error:
        if run.trials_until is None or time.time() < run.trials_until:
            raise
        return {"sweep": run.id, "bundle": None, "reason": f"no trial had ended by the deadline: {error}"}
    segments = f"a sweep by segment makes no bundle yet ({len(report.segments)} segments)"
    return {
        "sweep": report.id,
        "bundle": report.bundle,
        "reason": None if report.bundle is not None else segments,
        "trials_ended": began + report.seconds["data"] + report.seconds["trials"],
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
        "metric": report.metric,
        "best": {family: trial.value for family, trial in report.best.items()},
        "trials": len(report.trials),
        "cut": sum(trial.state == "cut" for trial in report.trials),
        "folder": str(report.folder),
    }


def promote(settings: Settings, home: Path, run: RunRecord, make_live: Promote) -> Found:
    """The bundle through the gate; what the gate refuses is an outcome, and no failure: the champion stays.

    `live`: when it went live, in seconds since 1970; None: it did not, and `reason` says why.
    """
    plan = parse_pipeline(run.document, run.file).steps.promote
    assert plan is not None
    assert run.bundle is not None
    began = time.time()
    try:
        promotion = make_live(run.bundle, plan.surfaces)
    except MantaError:
        refused = _refused(settings, home, run.bundle, began)
        if refused is None:
            raise
        promotion = refused
    shown = {name: promotion.get(name) for name in ("promotion", "surfaces", "state", "figures")}
    if promotion["state"] == "live":
        return shown | {"live": datetime.fromisoformat(promotion["changed"]).timestamp(), "reason": None}
    if promotion["state"] in ("refused", "rolled_back"):
        return shown | {"live": None, "reason": str(promotion.get("reason") or promotion["state"])}
    raise MantaError(f"promotion {promotion['promotion']}: {promotion['state']}: {promotion.get('reason') or '-'}")


def publish(settings: Settings, home: Path, run: RunRecord) -> Found:
    """What the promotion has put live, on the topic, where it may stand already; not what was taken back since."""
    promoted = run.step("promote")
    assert promoted is not None
    registry = open_registry(settings, home)
    try:
        promotion = registry.promotion(str(promoted.result["promotion"]))
        if promotion.state == "rolled_back":
            return {"sent": False, "address": None, "reason": f"taken back: {promotion.reason or '-'}"}
        return announce(settings, registry, promotion.id)
    finally:
        registry.close()


def _refused(settings: Settings, home: Path, bundle: str, since: float) -> Found | None:
    """The registry's word on a promotion that was refused: whoever asked heard only that."""
    registry = open_registry(settings, home)
    try:
        found = registry.promotions(100, "refused")
        clock_slack_s = 60.0  # the promotion's times are of the machine of the endpoint
        mine = (one for one in found if one.bundle == bundle and one.created > since - clock_slack_s)
        newest = next(mine, None)
        return None if newest is None else newest.as_json()
    finally:
        registry.close()
