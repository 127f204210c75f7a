"""Where a command works: its home and its settings, from the options before the command and the environment."""

import os
from pathlib import Path
from typing import NamedTuple

from app.settings import Settings, home_folder, load_settings
from deployments import cluster
from deployments.run import read, running


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
