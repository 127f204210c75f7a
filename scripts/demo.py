"""From nothing to a live recommender on real ratings: plays them in, ingests, sweeps, promotes, serves, asks.

scripts/demo [--once] [--port P] [--home DIR] [--kafka HOST:PORT]
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from app.errors import MantaError
from app.settings import Settings, home_folder, load_settings
from deployments import cluster
from deployments.ports import require_free
from scripts.story import Story

ROOT = Path(__file__).resolve().parent.parent
NEEDED_BYTES = 2_000_000_000


def main() -> int:
    """Tells the story; 0 when it was told, 1 with the failing step named, 2 for wrong usage or settings."""
    given = _arguments()
    os.environ["MANTA_HOME"] = str(given.home.absolute() if given.home else home_folder())
    if given.port is not None:
        os.environ["MANTA_HTTP__PORT"] = str(given.port)
    if given.kafka is not None:
        os.environ["MANTA_KAFKA__BOOTSTRAP_SERVERS"] = given.kafka
    console = Console(stderr=True)
    story: Story | None = None
    try:
        settings, home = load_settings(_settings_file()), home_folder()
        with _said(console, "check port, disk and home"):
            _check(settings, home)
        with cluster.attach(settings, home, ends=True, say=lambda line: console.print(f"  {line}")) as attached:
            if attached.run is None:
                raise MantaError("scripts/demo starts a system of its own: type it outside of `ray job submit`")
            story = Story(attached.settings, attached.run, console, began=psutil.Process().create_time())
            story.tell()
            if not given.once:
                _stay(console, home)
    except KeyboardInterrupt as interrupted:
        console.print("demo: stopped")
        return 0 if story is not None and story.told else getattr(interrupted, "code", 130)
    except MantaError as error:
        step = f"step '{story.step}' failed: " if story is not None else ""
        console.print(f"demo: {step}{error}", highlight=False, soft_wrap=True)
        return error.exit_code
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--once", action="store_true", help="stop everything once the story is told")
    parser.add_argument("--port", type=int, metavar="P", help="port of the endpoint (default: that of the settings)")
    parser.add_argument("--home", type=Path, metavar="DIR", help="all state goes there (default: MANTA_HOME, .manta)")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="a running Kafka (default: the embedded broker)")
    return parser.parse_args()


def _settings_file() -> Path:
    return Path(os.environ.get("MANTA_SETTINGS", ROOT / "manta.yaml"))


@contextmanager
def _said(console: Console, step: str) -> Iterator[None]:
    try:
        yield
    except MantaError as error:
        raise MantaError(f"step '{step}' failed: {error}") from None
    console.print(f"  {step}: fine")


def _check(settings: Settings, home: Path) -> None:
    if cluster.running(home) is not None:
        raise MantaError(f"a system runs in {home}: end it (scripts/manta down) or name another --home and --port")
    require_free(settings.http.port, settings.http.host, "the endpoint")
    folder = next(parent for parent in (home, *home.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise MantaError(
            f"found {free / 1e9:.1f} GB free at {folder}, wanted {NEEDED_BYTES / 1e9:.0f} GB: make room or name --home"
        )


def _stay(console: Console, home: Path) -> None:
    console.print("\nUp until Ctrl-C.")
    said = 0
    while (run := cluster.running(home)) is not None:
        if run.broker_restarts > said:
            said = run.broker_restarts
            console.print("  the embedded broker died: started again, items and users restored, gaps noted in the lake")
        time.sleep(0.5)
    raise MantaError("the system was ended from outside (`scripts/manta down`, or logs/ray.log says more)")


if __name__ == "__main__":
    sys.exit(main())
