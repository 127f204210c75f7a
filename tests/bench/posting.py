"""Events in over HTTP, a hundred a request, beside a serving load; and how soon a click shows while they come."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from scripts import apache_kafka
from scripts.freshness import event_to_recommendation_ms
from tests.bench.load import Load, cpu_seconds, open_loop, zipf_bodies
from tests.bench.system import Measured, caught_up, measured_system

BATCH = 100
SECONDS = 15
SERVED_PER_S = 200.0
FRESH_EVENTS_PER_S = 1000.0
FRESH_CASES = 200
ROLES = ("gateway", "proxy", "state_writer")


def run(events_per_s: float = 20_000.0) -> dict[str, Any]:
    """Offered and acknowledged events a second, CPU of each role, latency of the answers beside; freshness."""
    with measured_system() as system, ProcessPoolExecutor(1, get_context("spawn")) as beside:
        figures = _beside(system, beside, events_per_s)
        caught_up(system.home, system.settings)
        figures["freshness"] = _freshness(system, beside)
    return figures


def _beside(system: Measured, beside: ProcessPoolExecutor, events_per_s: float) -> dict[str, Any]:
    posts = _posts(int(events_per_s * SECONDS / BATCH), "post")
    asked = zipf_bodies(int(SERVED_PER_S * SECONDS), surface="home", seed=11)
    open_loop(system.port, asked[:400], per_second=SERVED_PER_S)
    beside_pids = {role: system.pids(role) for role in ROLES} | {
        "broker": [pid for pid in [apache_kafka.alive(system.home / "broker")] if pid is not None],
        "stats_writer": _stats_writers(system.home),
        "generators": [os.getpid(), beside.submit(os.getpid).result()],
    }
    before = {role: cpu_seconds(pids) for role, pids in beside_pids.items()}
    whole = _busy_seconds()
    began = time.perf_counter()
    posting = beside.submit(
        open_loop, system.port, posts, per_second=events_per_s / BATCH, connections=16, path="/v1/events"
    )
    serving = open_loop(system.port, asked, per_second=SERVED_PER_S)
    posted: Load = posting.result()
    seconds = time.perf_counter() - began
    return {
        "wanted_events_per_s": events_per_s,
        "acknowledged_events_per_s": (posted.requests - posted.errors) * BATCH / posted.seconds,
        "post_p50_ms": posted.p50_ms,
        "post_p99_ms": posted.p99_ms,
        "posts_refused": posted.errors,
        "served_per_s": serving.per_second,
        "served_p50_ms": serving.p50_ms,
        "served_p99_ms": serving.p99_ms,
        "served_errors": serving.errors,
        "cores": {role: (cpu_seconds(pids) - before[role]) / seconds for role, pids in beside_pids.items()}
        | {"whole_machine": (_busy_seconds() - whole) / seconds},
    }


def _stats_writers(home: Path) -> list[int]:
    """By the files of their metrics: they have no role."""
    return sorted({int(path.name.removeprefix("stats-").split(".")[0]) for path in (home / "metrics").glob("stats-*")})


def _busy_seconds() -> float:
    """Of all cores since the machine was started, whoever it was."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _freshness(system: Measured, beside: ProcessPoolExecutor) -> dict[str, float]:
    """From a click to the changed answer, while a thousand events of others come in each second."""
    posts = _posts(int(FRESH_EVENTS_PER_S * 30 / BATCH), "fresh")
    posting = beside.submit(
        open_loop, system.port, posts, per_second=FRESH_EVENTS_PER_S / BATCH, connections=4, path="/v1/events"
    )
    users = [f"clicker-{number}" for number in range(FRESH_CASES)]
    found, _ = event_to_recommendation_ms("127.0.0.1", system.port, users, surface="home")
    posting.result()
    p50, p99 = np.percentile(found, [50, 99])
    return {"cases": len(found), "p50_ms": float(p50), "p99_ms": float(p99)}


def _posts(count: int, name: str) -> list[bytes]:
    """Bodies of BATCH events each, every one of another user."""
    return [
        json.dumps(
            [
                {
                    "event_id": f"{name}-{number}-{place}",
                    "user_id": f"{name}{(number * BATCH + place) % 50_000}",
                    "item_id": str(1 + place),
                    "event_type": "click",
                }
                for place in range(BATCH)
            ]
        ).encode()
        for number in range(count)
    ]
