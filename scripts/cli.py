"""The command line: `scripts/manta`, or the installed `manta`. The only module that may import both sides."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from app.errors import MantaError, SettingsError
from app.settings import Settings, home_folder
from scripts import bundles, data, evaluate, follow, imports, pipeline, show, state, system, users
from scripts.session import Session, lift_options, open_session

if TYPE_CHECKING:
    from app.lake.follow import Wait
    from tune.ingest import IngestReport
    from tune.report import SweepReport


class Commands(TyperGroup):
    """Says so when a command is interrupted, with the exit code of the signal (the parser knows only Ctrl-C's)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            show.say("interrupted; the next run goes on from here")
            raise typer.Exit(int(getattr(error, "code", 130))) from None


app = typer.Typer(
    name="manta",
    cls=Commands,
    help="A recommender platform on one Ray cluster: events in, a sweep, one live endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
system.add_to(app)
imports.add_to(app)
data.add_to(app)
evaluate.add_to(app)
bundle_commands = bundles.add_to(app)
follow.add_to(bundle_commands)
users.add_to(app)
state.add_to(app)


@app.callback()
def options(
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings; default: MANTA_SETTINGS, else manta.yaml.")
    ] = None,
    home: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: MANTA_HOME, else .manta/.")] = None,
) -> None:
    """Options that every command takes, before or after its name (`lift_options` has taken them already)."""
    del settings, home


@app.command(epilog="Example: manta ingest --json")
def ingest(
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until Ctrl-C (ends well), a commit every few seconds.")
    ] = False,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Record offsets that are gone for good, and go on behind them.")
    ] = False,
    json_: show.JsonFlag = False,
) -> None:
    """Takes what is new in Kafka into the lake, each event exactly once."""
    from app.heap import bound_heap, leave_pandas_out
    from deployments.cluster import attach
    from deployments.processes import stopping

    leave_pandas_out()
    bound_heap()
    session = open_session()
    with attach(session.settings, session.home, say=show.say) as attached, show.progress("ingest") as bar:
        if follow:
            every = attached.settings.ingest.follow_s
            show.say(
                f"following: a commit every {every:g} s of what has come; Ctrl-C ends it behind the commit under way"
            )
        with stopping() if follow else nullcontext() as stop:
            wait = stop.wait if stop is not None else None
            report = take_in(attached.settings, session.home, bar.topic, follow=wait, accept_gap=accept_gap)
        result = _shown(report)
    if json_:
        show.as_json(result)
    else:
        show.facts(result)


@app.command(epilog="Example: manta sweep tune/sweeps/demo.yaml")
def sweep(
    file: Annotated[Path | None, typer.Argument(metavar="FILE.yaml", help="The sweep file.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with an interrupted sweep.")] = None,
    json_: show.JsonFlag = False,
) -> None:
    """Tries families and parameters on the lake's events; registers the best bundle, not live."""
    from deployments.cluster import attach

    if file is None and resume is None:
        raise SettingsError("manta sweep", "FILE.yaml", None, "a sweep file, or --resume ID")
    session = open_session()
    with attach(session.settings, session.home, needs_broker=False, say=show.say) as attached:
        from tune.report import leaderboard

        report = learn(attached.settings, session.home, Console(stderr=True), file, resume)
        result: dict[str, Any] = {**report.as_json(), "folder": str(report.folder)}
        if json_:
            show.as_json(result)
        else:
            Console().print(leaderboard(report.trials, report.metric, limit=20))
            print()
            show.facts({name: result[name] for name in ("sweep", "metric", "best", "bundle", "folder")})


def take_in(
    settings: Settings,
    home: Path,
    progress: Callable[[str, int, int], None],
    *,
    follow: "Wait | None" = None,
    accept_gap: bool = False,
) -> "IngestReport":
    """One ingest on the Ray that is joined; with `follow` until that says that it is time to stop."""
    from tune.ingest import run_ingest

    return run_ingest(settings, home, follow=follow, accept_gap=accept_gap, progress=progress)


def learn(
    settings: Settings, home: Path, console: Console, file: Path | None, resume: str | None = None
) -> "SweepReport":
    """One sweep on the Ray that is joined, shown on the console as it goes."""
    from tune.report import live
    from tune.sweep import run_sweep

    with live(console) as watch:
        return run_sweep(settings, home, file, resume, watch)


def _shown(report: "IngestReport") -> dict[str, Any]:
    return {
        "rows": dict(report.rows),
        "duplicates": report.duplicates,
        "erased": report.erased,
        "dead_letters": dict(report.dead_letters),
        "offsets": report.offsets,
        "gaps": report.gaps,
        "commits": report.commits,
        "seconds": round(report.seconds, 3),
    }


@bundle_commands.command(epilog="Example: manta bundles promote b-20261121-1 --surface home")
def promote(
    bundle: bundles.BundleId,
    surface: Annotated[
        list[str] | None, typer.Option(help="Surface; repeats. Default: all that it was built for.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Skip the metric gate (never hashes and smoke).")] = False,
    expected: Annotated[str | None, typer.Option(metavar="ID", help="Refuse unless this bundle is live now.")] = None,
    json_: show.JsonFlag = False,
) -> None:
    """Makes a bundle live: metric gate, hashes, smoke request.

    Of a system whose endpoint answers, all replicas change at once; otherwise what starts later reads what is live.
    """
    bundles.report(_make_live(open_session(), bundle, surface, force=force, expected=expected), json_)


def _make_live(
    session: Session,
    bundle: str,
    surfaces: Sequence[str] | None,
    *,
    force: bool = False,
    expected: str | None = None,
) -> bundles.Promoted:
    """The promotion once it has ended: through the endpoint where one answers, else the alias alone is moved."""
    run = bundles.serving(session.home)
    if run is not None:
        return bundles.promote_live(run, bundle, list(surfaces or ()), force, expected)
    from tune import promote as offline

    return offline.promote(session.settings, session.home, bundle, surfaces, force=force, expected=expected).as_json()


@bundle_commands.command(epilog="Example: manta bundles rollback home")
def rollback(surface: Annotated[str, typer.Argument(help="The surface.")], json_: show.JsonFlag = False) -> None:
    """Makes the bundle live again that was live before on a surface; through the endpoint as `promote`."""
    session = open_session()
    run = bundles.serving(session.home)
    if run is not None:
        promotion = bundles.rollback_live(run, surface)
    else:
        from tune import promote as offline

        promotion = offline.rollback(session.settings, session.home, surface).as_json()
    bundles.report(promotion, json_)


pipeline.add_to(app, _make_live)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process with its exit code: 0 done, 1 failed, 2 wrong usage or settings."""
    sys.exit(_run(lift_options(list(sys.argv[1:] if arguments is None else arguments))))


def _run(words: list[str]) -> int:
    try:
        code = app(words, prog_name="manta", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        shown = getattr(error, "show", None)  # only those of the parser have it: usage, and what is wrong
        shown() if shown is not None else show.say(str(error))
        return error.exit_code
    except MantaError as error:
        show.say(str(error))
        return error.exit_code
    except KeyboardInterrupt:  # before a command began
        return 130
    except BrokenPipeError:  # whoever reads us has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - what is still buffered goes nowhere
        return 0
    except OSError as error:
        show.say(f"{error.strerror or error}: {error.filename or 'no file is named'}")
        return 1
    except Exception as error:
        show.say(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else '-'}; {_keep_traceback()}")
        return 1


def _keep_traceback() -> str:
    """Writes the traceback of an error that should not have been; says where."""
    log = home_folder() / "logs" / "manta.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {' '.join(sys.argv)}\n{traceback.format_exc()}\n")
    except OSError:
        return traceback.format_exc()
    return f"{log} has the details"


if __name__ == "__main__":
    main()
