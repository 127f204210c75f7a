"""Compaction and expiry killed -9 at named points and run again: the same rows, the same offsets, nothing left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from app.events.columns import EVENT_COLUMNS
from app.events.schema import EVENTS
from app.lake.commit import TopicOffsets, append, progress_of
from app.lake.snapshot import snapshot
from app.lake.tables import Lake, open_lake
from app.settings import LakeSettings, Settings

pytestmark = pytest.mark.faults

COMMITS = 6


def add(lake: Lake, number: int) -> None:
    """One commit of two events, one in each of two months."""
    row = {"user_id": "u", "event_type": "click", "topic": EVENTS, "partition": 0, "record_time": number * 1_000_000}
    rows = [
        row | {"event_id": f"{number}-{month}", "event_time": month * 2_678_400_000_000, "offset": 2 * number + month}
        for month in (0, 1)
    ]
    table = lake.table(EVENTS)
    progress = progress_of(table).moved(EVENTS, TopicOffsets("id", {0: 2 * number + 2}))
    append(table, pa.Table.from_pylist(rows, EVENT_COLUMNS), progress, max_open_partitions=10)


def manta(home: Path, *words: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """One command as a process of its own; with a fault it kills itself there."""
    variables = {"MANTA_HOME": str(home), "MANTA_LAKE__PARTITION": "month"}
    variables |= {"MANTA_LAKE__KEEP_SNAPSHOTS_H": "0", "MANTA_LAKE__GRACE_H": "1"}
    variables |= {"MANTA_FAULT": fault} if fault else {}
    command = [sys.executable, "-m", "scripts.cli", "lake", *words, "--table", EVENTS, "--json"]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)


def age(home: Path, seconds: int) -> None:
    """Makes every file older than the grace period."""
    for path in (home / "lake").rglob("*"):
        if path.suffix in (".parquet", ".avro", ".json"):
            os.utime(path, (time.time() - seconds,) * 2)


def test_killed_anywhere_and_run_again_the_rows_and_offsets_are_the_same(tmp_path: Path) -> None:
    lake = open_lake(Settings(lake=LakeSettings(partition="month")), tmp_path)
    for number in range(COMMITS):
        add(lake, number)
    before, progress = snapshot(lake, EVENTS).read().sort_by("offset"), snapshot(lake, EVENTS).progress

    def unchanged() -> None:
        now = snapshot(lake, EVENTS)
        assert now.read().sort_by("offset") == before
        assert now.progress == progress

    points = {"compact": ("written", "committed"), "expire": ("written", "committed", "removing:2")}
    for command, names in points.items():
        for name in names:
            if name == "removing:2":
                age(tmp_path, 4000)
            killed = manta(tmp_path, command, fault=f"{command}:{name}")
            assert killed.returncode == -signal.SIGKILL, f"{command}:{name} was not reached: {killed.stderr}"
            unchanged()
    assert len(snapshot(lake, EVENTS).files()) == 2, "one file a month"
    for command in points:
        done = manta(tmp_path, command)
        assert done.returncode == 0, done.stderr
        unchanged()
    # What the killed compaction had written and nothing ever referred to is gone; what was superseded waits its grace
    live = {part.path.removeprefix("file://") for part in snapshot(lake, EVENTS).files()}
    there = {str(path) for path in (tmp_path / "lake").rglob("*.parquet")}
    assert live <= there
    assert len(there) == len(live) + 2 * COMMITS
