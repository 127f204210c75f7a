"""`python -m tests.bench.whole_ingest WAY ADDRESS EVENTS HOME [once]`: ingests as a user would, on a Ray of its own.

A process of its own, so that all that it has started, and nothing else, is what an ingest costs; the broker is not.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from app.events.schema import EVENTS
from app.heap import bound_heap, leave_pandas_out
from app.settings import KafkaSettings, LakeSettings, Settings
from tests.bench.peak import StartedPeak, held_bytes, started

_STORE_BYTES = 400_000_000  # Ray's object store


def main(way: str, address: str, events: int, home: Path, *, once: bool) -> dict[str, Any]:
    """Ingests twice into lakes of their own, `once` only the first.

    Returns:
        `cold` and `total`: events per core-second of all processes, Ray's included, of the first ingest on a new Ray
        (its workers import for seconds) and of the second, as `--follow` goes on; `…_wall`:
        events per second; `idle_bytes` and `peak_bytes`: memory of all processes before, and the most there was.
    """
    ingest = _manta() if way == "manta" else _rays()
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=address), lake=LakeSettings(partition="month"))
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=_STORE_BYTES, logging_level="ERROR")
    figures: dict[str, Any] = {"idle_bytes": held_bytes()}
    with StartedPeak() as memory:
        for name in ("cold",) if once else ("cold", "total"):
            spent, clock = _cpu_seconds() - memory.spent_s, time.perf_counter()
            rows = ingest(settings, home / name)
            if rows != events:
                raise AssertionError(f"{way}, {name}: found {rows} rows, wanted {events}")
            figures[name] = events / (_cpu_seconds() - memory.spent_s - spent)
            figures[f"{name}_wall"] = events / (time.perf_counter() - clock)
    ray.shutdown()
    return figures | {"peak_bytes": memory.peak}


def _manta() -> Callable[[Settings, Path], int]:
    leave_pandas_out()  # as the command does
    bound_heap()
    from tune.ingest import run_ingest

    return lambda settings, home: run_ingest(settings, home).rows[EVENTS]


def _rays() -> Callable[[Settings, Path], int]:
    from tests.bench import ray_ingest

    return ray_ingest.ingest


def _cpu_seconds() -> float:
    """CPU time of this process and of all that it has started, the ended ones included."""
    spent = 0.0
    for process in started():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


if __name__ == "__main__":
    found = main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), once=sys.argv[5:] == ["once"])
    sys.stdout.write(json.dumps(found) + "\n")
