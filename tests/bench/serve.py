"""Serving: colocated and distributed against a bare process with the same chain, and how fresh the answers are."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.errors import MantaError
from scripts.freshness import event_to_recommendation_ms
from scripts.replay import Client
from tests.bench.load import Background, Load, closed_loop, cpu_seconds, free_port, open_loop, zipf_bodies
from tests.bench.system import ROOT, Measured, measured_system

SECONDS = 8
ROUNDS = 5
EVENTS_PER_S = 50.0
ANSWERING = ("gateway", "retriever", "ranker", "proxy")
BESIDE = ("state_writer", "broker", "controller")


def run() -> dict[str, Any]:
    """Ratios to bare of requests per CPU-second and per second; p99 at half of saturation; event to changed answer.

    The three take turns, ROUNDS times, since the machine's own pace changes from minute to minute: a ratio is the
    median of those within a round.
    """
    with measured_system() as system, _bare(system) as (port, pid):
        asked = {
            "bare": (port, "home", [pid]),
            "colocated": (system.port, "home", system.pids(*ANSWERING)),
            "distributed": (system.port, "away", system.pids(*ANSWERING)),
        }
        for at, surface, _ in asked.values():
            closed_loop(at, seconds=4, surface=surface, seed=99)
        rounds = [{name: _rates(system, *one, seed=seed) for name, one in asked.items()} for seed in range(ROUNDS)]
        figures: dict[str, Any] = {name: _median([one[name] for one in rounds]) for name in asked}
        for name in ("colocated", "distributed"):
            for rate in ("per_cpu_second", "per_second"):
                ratios = [one[name][rate] / one["bare"][rate] for one in rounds]
                figures[name][f"{rate}_to_bare"] = float(np.median(ratios))
                figures[name][f"{rate}_to_bare_of_rounds"] = ratios
            figures[name] |= _half(system, asked[name][1], figures[name]["per_second"] / 2)
        figures["freshness"] = _freshness(system)
    _show(figures)
    return figures


def _median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([one[name] for one in rounds])) for name in rounds[0]}


@contextmanager
def _bare(system: Measured) -> Iterator[tuple[int, int]]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare", str(system.home), str(system.bundle), str(port)]
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                Client("127.0.0.1", port).call("GET", "/healthz")
                break
            except OSError:
                if time.monotonic() > end or child.poll() is not None:
                    raise MantaError("bench: the bare process did not start") from None
                time.sleep(0.2)
        yield port, child.pid
    finally:
        child.terminate()
        child.wait()


def _rates(system: Measured, port: int, surface: str, pids: list[int], *, seed: int) -> dict[str, float]:
    """A closed loop of 16 connections, events meanwhile; CPU of `pids` alone."""
    beside_pids = system.pids(*BESIDE)
    client, numbers = system.client(), itertools.count()
    with Background(lambda: _post(client, next(numbers)), EVENTS_PER_S):
        before, beside = cpu_seconds(pids), cpu_seconds(beside_pids)
        load = closed_loop(port, seconds=SECONDS, surface=surface, seed=seed)
        used, others = cpu_seconds(pids) - before, cpu_seconds(beside_pids) - beside
    if load.errors:
        raise MantaError(f"bench: {load.errors} of {load.requests} requests failed")
    return {
        "per_second": load.per_second,
        "per_cpu_second": load.requests / used,
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "cpu_seconds": used,
        "cpu_seconds_beside": others,
    }


def _post(client: Client, number: int) -> None:
    client.call("POST", "/v1/events", {"user_id": f"u{number % 1000 + 1}", "item_id": "318", "event_type": "click"})


def _half(system: Measured, surface: str, rate: float) -> dict[str, float]:
    """Latency in an open loop at half of what saturates."""
    load: Load = open_loop(system.port, zipf_bodies(int(rate * 10), surface=surface, seed=7), per_second=rate)
    return {
        "half_offered_per_s": load.offered_per_s,
        "half_p50_ms": load.p50_ms,
        "half_p99_ms": load.p99_ms,
        "half_errors": load.errors,
    }


def _freshness(system: Measured) -> dict[str, float]:
    """From a click to the changed answer, at 200 events/s of others."""
    client, numbers = system.client(), itertools.count()
    with Background(lambda: _post(client, next(numbers)), 200.0):
        found, _ = event_to_recommendation_ms(
            "127.0.0.1", system.port, [f"fresh-{n}" for n in range(200)], surface="home"
        )
    p50, p99 = np.percentile(found, [50, 99])
    return {"cases": len(found), "p50_ms": float(p50), "p99_ms": float(p99)}


def _show(figures: dict[str, Any]) -> None:
    table = Table(title="serving, 16 connections, every request another body")
    rows = ("per_second", "per_cpu_second", "p50_ms", "p99_ms", "cpu_seconds", "cpu_seconds_beside")
    more = ("per_second_to_bare", "per_cpu_second_to_bare", "half_offered_per_s", "half_p50_ms", "half_p99_ms")
    table.add_column("figure")
    for name in ("bare", "colocated", "distributed"):
        table.add_column(name, justify="right")
    for row in rows + more:
        cells = [figures[name].get(row) for name in ("bare", "colocated", "distributed")]
        table.add_row(row, *("" if cell is None else f"{cell:,.2f}" for cell in cells))
    Console(stderr=True).print(table)
