"""`manta pipeline`: runs of a pipeline file as jobs of one Ray, and what is shown of them."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from app.errors import MantaError, SettingsError
from app.lock_file import hold
from scripts import show
from scripts.session import Session, attached, open_session

if TYPE_CHECKING:
    from tune.pipeline.record import RunRecord, Store

# Makes a bundle live on surfaces (none: all); the promotion once it has ended.
MakeLive = Callable[[Session, str, Sequence[str]], dict[str, Any]]
COLUMNS = ("run", "due", "missed", "update", "sweep", "promote", "publish", "total", "to live", "result", "bundle")


def add_to(app: typer.Typer, make_live: MakeLive) -> None:
    """Registers the commands; `make_live` is of both sides."""
    app.command(epilog="Example: manta pipeline nightly.yaml")(pipeline)

    @app.command("pipeline-step", hidden=True, epilog="Example: manta pipeline-step RUN sweep JOB")
    def pipeline_step(
        folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
        step: Annotated[str, typer.Argument(metavar="STEP", help="update, sweep, promote or publish.")],
        job: Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")],
    ) -> None:
        """One step of a pipeline's run, as its job."""
        from tune.pipeline.file import STEPS

        if step not in STEPS:
            raise SettingsError("manta pipeline-step", "STEP", step, "one of " + ", ".join(STEPS))
        session = open_session()
        show.as_json(_step(session, folder, step, job, partial(make_live, session)))


def pipeline(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The pipeline file.")],
    once: Annotated[bool, typer.Option("--once", help="One run now, whatever the schedule.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Show the runs so far, and run nothing.")] = False,
    json_: show.JsonFlag = False,
) -> None:
    """Runs update data, sweep, promote and publish as Ray jobs: once, or by the file's schedule until Ctrl-C.

    A run that was interrupted is finished first, without running again what had ended. Exit code 1 where it failed;
    a bundle that the gate refuses is no failure.
    """
    from tune.pipeline.file import check_pipeline, read_pipeline
    from tune.pipeline.record import Store
    from tune.pipeline.service import Service

    session = open_session()
    plan, document = read_pipeline(file)
    store = Store(session.home, plan.name)
    if history:
        _show_history(store.runs(), json_)
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # this one may live for months, and stays small
        apart.submit(check_pipeline, file, plan, session.settings).result()
    with hold(store.lock, f"pipeline {plan.name}", file=str(file.absolute())):
        service = Service(
            store,
            plan,
            document,
            file.absolute(),
            partial(_carry_out, session, store),
            clock=time.time,
            wait=time.sleep,
            say=show.say,
        )
        if plan.schedule is not None and not once:
            service.follow_schedule()
        run = service.once()
    _show(run, json_)
    if run.state == "failed":
        raise MantaError(f"run {run.id}: {run.reason}")


def _carry_out(session: Session, store: "Store", run: "RunRecord") -> "RunRecord":
    """A run as jobs of the system that is up, or of one that is there for it alone."""
    from tune.pipeline.jobs import RayJobs
    from tune.pipeline.run import Conductor

    needs_broker = any(run.step(name) is not None for name in ("update", "publish"))
    with attached(session, driver=False, needs_broker=needs_broker) as system:
        jobs = RayJobs(None if system.run is None else system.run.dashboard)
        return Conductor(store, jobs, _words, clock=time.time, wait=time.sleep, say=show.say).carry_out(run)


def _words(folder: Path, step: str, job: str) -> list[str]:
    return ["manta", "pipeline-step", str(folder), step, job]


def _step(
    session: Session, folder: Path, step: str, job: str, make_live: Callable[[str, Sequence[str]], dict[str, Any]]
) -> dict[str, Any]:
    """What the step has found, also kept for the pipeline."""
    from tune.pipeline import steps
    from tune.report import live

    def do(run: "RunRecord") -> dict[str, Any]:
        if step == "promote":
            return steps.promote(session.settings, session.home, run, make_live)
        with attached(session, ray=step != "publish", needs_broker=step != "sweep") as system:
            if step == "update":
                return steps.update(system.settings, session.home, run, show.say)
            if step == "publish":
                return steps.publish(system.settings, session.home, run)
            with live(Console(stderr=True)) as watch:
                return steps.sweep(system.settings, session.home, folder, run, watch)

    return steps.run_step(folder, job, do)


def _show_history(runs: Sequence["RunRecord"], as_json: bool) -> None:
    """The runs, newest first: seconds of each step, from snapshot to live, and what came out."""
    if as_json:
        show.as_json({"runs": [run.as_json() for run in runs]})
    else:
        show.table([_row(run) for run in runs], COLUMNS, "no runs yet")


def _show(run: "RunRecord", as_json: bool) -> None:
    """One run: each step with its time, attempts and result."""
    if as_json:
        show.as_json(run.as_json())
        return
    rows = [
        {
            "step": step.name,
            "state": step.state,
            "seconds": "-" if step.seconds is None else f"{step.seconds:.1f}",
            "attempts": len(step.attempts),
            "job": step.attempts[-1].job if step.attempts else "-",
            "says": step.error or _said(step.name, step.result),
        }
        for step in run.steps
    ]
    show.table(rows, ["step", "state", "seconds", "attempts", "job", "says"], "no steps")
    print()
    found = run.as_json()
    names = ("run", "state", "reason", "bundle", "data", "trials_until", "deadline", "live", "snapshot_to_live_s")
    show.facts({name: found[name] for name in names if found[name] is not None})
    sys.stdout.flush()


def _row(run: "RunRecord") -> dict[str, Any]:
    found = run.as_json()
    seconds = {step.name: "-" if step.seconds is None else f"{step.seconds:.1f}" for step in run.steps}
    to_live = found["snapshot_to_live_s"]
    late = f" ({run.late_s:.0f} s late)" if run.late_s is not None else ""
    reason = f": {run.reason}" if run.reason else ""
    return seconds | {
        "run": run.id,
        "due": found["due"],
        "missed": run.missed or None,
        "total": None if found["seconds"] is None else f"{found['seconds']:.1f}",
        "to live": None if to_live is None else f"{to_live:.1f}{late}",
        "result": run.state + reason,
        "bundle": run.bundle,
    }


def _said(step: str, result: dict[str, Any]) -> str:
    """What a step found, in a few words."""
    if step == "update":
        return f"{sum(result.get('rows', {}).values()):,} new rows"
    if step == "sweep":
        trials = f"{result['trials']} trials" if "trials" in result else ""
        cut = f", {result['cut']} cut by the deadline" if result.get("cut") else ""
        return (result.get("bundle") or result.get("reason") or "") + (f" of {trials}{cut}" if trials else "")
    if step == "promote":
        return result.get("reason") or f"live on {', '.join(result.get('surfaces') or [])}"
    stood = "" if result.get("sent", True) else " (stood there already)"
    return result.get("reason") or f"{result.get('address', '')}{stood}"
