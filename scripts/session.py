"""Where a command works: its home and its settings, from the options before the command and the environment."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from app.settings import Settings, home_folder, load_settings
from deployments import cluster
from deployments.run import read, running
from scripts import show


class Session(NamedTuple):
    """The settings and the home of one command."""

    settings: Settings
    home: Path


def open_session() -> Session:
    """Settings and home: `--settings` or MANTA_SETTINGS, else those that the running system was started with.

    Leftovers of a dead system of this home are ended first.

    Raises:
        SettingsError: a setting is wrong, or the file is missing.
    """
    home = home_folder()
    left = read(home)
    if left is not None and not left.alive():  # a killed system: what it left behind is ended
        cluster.stop(home)
    run = None if "MANTA_SETTINGS" in os.environ else running(home)
    file = run.settings_file if run is not None and run.settings_file.exists() else None
    return Session(load_settings(file), home)


def attached(
    session: Session, *, ray: bool = True, driver: bool = True, needs_broker: bool = True
) -> AbstractContextManager[cluster.Attached]:
    """The living system of a command's home, or one that is there for it alone (`cluster.attach`)."""
    return cluster.attach(
        session.settings, session.home, ray=ray, driver=driver, needs_broker=needs_broker, say=show.say
    )


def lift_options(words: list[str]) -> list[str]:
    """Takes `--settings FILE` and `--home DIR` out of a command line, wherever they stand, into the environment."""
    names = {"--settings": "MANTA_SETTINGS", "--home": "MANTA_HOME"}
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*left, word, *rest]
        option, equals, value = word.partition("=")
        if option not in names:
            left.append(word)
            continue
        found = value if equals else next(rest, None)
        if found is None:
            left.append(word)  # without a value: the parser says what is wrong
            continue
        os.environ[names[option]] = str(Path(found).absolute())
    return left
