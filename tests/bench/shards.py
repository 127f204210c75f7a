"""Sharded state: what it adds to a request that the history lies on another node (two raylets on this machine)."""

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.errors import MantaError
from app.state.shares import shard_of
from deployments.run import read
from scripts.replay import Client
from tests.bench.system import USERS, Measured, measured_system
from tests.cluster.another_node import AnotherNode

REQUESTS = 2000
MOVED_S = 120.0
_SHARDED = {"MANTA_STATE__PLACEMENT": "sharded", "MANTA_STATE__SHARDS": "2", "MANTA_SERVE__GATEWAY__MAX_REPLICAS": "2"}


def run() -> dict[str, Any]:
    """p50 and p99 in ms of single requests, in turns of users whose shard is the gateways' own and another node's.

    Shard 1 moves to the node that joins; the gateways stay where they are.
    """
    with measured_system(**_SHARDED) as system:
        run = read(system.home)
        assert run is not None
        client = system.client()
        users = [[f"u{n}" for n in range(1, USERS) if shard_of(f"u{n}", 2) == number] for number in (0, 1)]
        before = _in_turns(client, users)
        another = AnotherNode(system.settings, run)
        try:
            _wait_until_moved(system)
            after = _in_turns(client, users)
        finally:
            another.kill()
    figures: dict[str, Any] = {
        "one_node": {"own": _percentiles(before[0]), "also_own": _percentiles(before[1])},
        "two_nodes": {"own": _percentiles(after[0]), "other": _percentiles(after[1])},
    }
    own, other = figures["two_nodes"]["own"], figures["two_nodes"]["other"]
    figures["added_p50_ms"] = round(other["p50_ms"] - own["p50_ms"], 3)
    figures["other_to_own"] = {name: round(other[name] / own[name], 3) for name in own}
    _show(figures)
    return figures


def _in_turns(client: Client, users: list[list[str]]) -> list[list[float]]:
    """Milliseconds of each request, by shard."""
    took: list[list[float]] = [[], []]
    for number in range(REQUESTS + 100):
        for shard in (0, 1):
            body = {"surface": "home", "user_id": users[shard][number % len(users[shard])], "k": 10}
            since = time.perf_counter()
            code, answer = client.call("POST", "/v1/recommend", body)
            if code != 200 or answer["degraded"] is not None:
                raise MantaError(f"bench: found {code} {answer.get('degraded_reason')}, wanted an answer of the chain")
            if number >= 100:  # the first ones warm up
                took[shard].append((time.perf_counter() - since) * 1000)
    return took


def _wait_until_moved(system: Measured) -> None:
    from deployments.state_writer import state_status

    end = time.monotonic() + MOVED_S
    while True:
        kept = [sorted(one.get("shards", {})) for one in state_status()]
        if sorted(kept) == [[0], [1]]:
            break
        if time.monotonic() > end:
            raise MantaError(f"bench: found shards kept as {kept}, wanted one on each node")
        time.sleep(0.5)
    time.sleep(3.0)  # gateways hear of it once a second


def _percentiles(took: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def _show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{REQUESTS} single requests a column, in turns")
    table.add_column("figure")
    columns = [(where, whose) for where in ("one_node", "two_nodes") for whose in figures[where]]
    for where, whose in columns:
        table.add_column(f"{where}, {whose}", justify="right")
    for row in ("p50_ms", "p99_ms"):
        table.add_row(row, *(f"{figures[where][whose][row]:.2f}" for where, whose in columns))
    Console(stderr=True).print(table)
