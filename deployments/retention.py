"""The alarm before retention deletes what lake or state have not read: measured every few minutes, kept in the home.

    python -m deployments.retention HOME < SETTINGS.json

A process of its own, so that no actor keeps the lake's libraries in memory. Beside every node's writer of the state, so
that each node's `$MANTA_HOME/retention.json`, which `/metrics` and `manta status` show there, is about its own state.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.errors import MantaError
from app.settings import Settings
from app.state.position import TOPICS, positions_here
from deployments.broker import require
from deployments.run import read as read_run

PERIOD_S = 300.0
_FIRST_S = 15.0  # a system that starts has better things to do
_LIMIT_S = 60.0
_FRESH_S = 60.0
_FILE = "retention.json"

log = logging.getLogger("manta.retention")


class RetentionWatch:
    """Measures every few minutes, in a process of its own each time. `settings` name the broker's address."""

    def __init__(self, settings: Settings, home: Path) -> None:
        """Begins to."""
        self._settings, self._home = settings, home
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="retention", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        wait_s = _FIRST_S
        while not self._stopped.wait(wait_s):
            wait_s = PERIOD_S
            command = [sys.executable, "-P", "-m", "deployments.retention", str(self._home)]
            try:
                text = self._settings.model_dump_json()
                subprocess.run(command, input=text, text=True, timeout=_LIMIT_S, check=True, capture_output=True)
            except (OSError, subprocess.SubprocessError) as error:
                log.warning("retention could not be measured: %s %s", error, getattr(error, "stderr", None) or "")


class RetentionFile:
    """The measurements of a home, for whoever looks often."""

    def __init__(self, home: Path) -> None:
        self._home, self._seen = home, 0.0

    def changed(self) -> dict[str, Any] | None:
        """The last measurement; None: it is the one that was seen before, or there is none."""
        at = _measured(self._home)
        if at == self._seen:
            return None
        self._seen = at
        return read(self._home) or None


def current(settings: Settings, home: Path, *, up: bool) -> dict[str, Any]:
    """The last measurement; without a running system a new one, if the last is over a minute old.

    Returns:
        `{"as_of", "alarm_h", "readers": [{"reader", "topic", "partition", "hours", "hours_by_time", "hours_by_bytes",
        "unread", "alarm"}]}`, nearest first; empty where nothing was ever measured and no broker answers.
    """
    last = read(home)
    if up or (last and time.time() - _measured(home) < _FRESH_S):
        return last
    try:
        require(settings.kafka)  # a client would wait for ten seconds to find out
        return measure_here(settings, home)
    except MantaError as error:
        log.debug("retention: %s", error)
        return last


def read(home: Path) -> dict[str, Any]:
    """The last measurement; empty: there is none."""
    try:
        found: dict[str, Any] = json.loads((home / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found


def measure_here(settings: Settings, home: Path) -> dict[str, Any]:
    """Asks broker, lake and state; writes the file.

    Raises:
        MantaError: the broker or the lake cannot be reached.
    """
    from app.events.retention import measure

    alarm_h = settings.kafka.alarm_h
    rows = [
        {
            "reader": one.reader,
            "topic": one.topic,
            "partition": one.partition,
            "hours": _rounded(one.hours),
            "hours_by_time": _rounded(one.hours_by_time),
            "hours_by_bytes": _rounded(one.hours_by_bytes),
            "unread": one.unread,
            "alarm": one.hours is not None and one.hours < alarm_h and one.unread > 0,
        }
        for one in measure(settings.kafka, readers_of(settings, home))
    ]
    rows.sort(key=lambda row: (row["hours"] is None, row["hours"]))
    moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    found = {"as_of": moment, "alarm_h": alarm_h, "readers": rows}
    fresh = home / f"{_FILE}.{os.getpid()}"
    fresh.write_text(json.dumps(found))
    fresh.replace(home / _FILE)
    return found


def readers_of(settings: Settings, home: Path) -> dict[str, Mapping[str, Mapping[int, int]]]:
    """Reader → topic → partition → next offset; of the lake only where it can be seen."""
    readers: dict[str, Mapping[str, Mapping[int, int]]] = {}
    if settings.lake.catalog or read_run(home) is not None or (home / "lake").exists():  # else it lies on another node
        readers["lake"] = _read_by_the_lake(settings, home)
    if here := positions_here(home):
        readers["state"] = {
            topic: {p: at for one in here for p, at in one.offsets()[topic].items()} for topic in TOPICS
        }
    for position in here:
        position.close()
    return readers


def _read_by_the_lake(settings: Settings, home: Path) -> dict[str, Mapping[int, int]]:
    from app.events.decode import TABLES
    from app.lake.snapshot import snapshot
    from app.lake.tables import open_lake

    lake = open_lake(settings, home)
    read: dict[str, Mapping[int, int]] = {}
    for name in TABLES:
        stood = snapshot(lake, name).progress.topics.get(name) if lake.exists(name) else None
        read[name] = stood.next if stood is not None else {}
    return read


def _rounded(hours: float | None) -> float | None:
    return None if hours is None else round(hours, 3)


def _measured(home: Path) -> float:
    try:
        return (home / _FILE).stat().st_mtime
    except OSError:
        return 0.0


if __name__ == "__main__":
    os.nice(10)
    try:
        measure_here(Settings.model_validate_json(sys.stdin.read()), Path(sys.argv[1]))
    except MantaError as error:
        sys.exit(str(error))
