"""What runs, for `manta status`: read from run.json, the processes and Ray's dashboard, without joining Ray."""

import contextlib
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from app.settings import Settings
from app.state.layout import StatePaths
from app.state.position import positions_here
from app.state.room import free_bytes, used_bytes
from app.stats.store import StatsPaths
from deployments import retention
from deployments.environment import token_path
from deployments.processes import Process
from deployments.run import Run, read

# Ray's class name of an actor to its role; replicas are told by their deployment's name.
_CLASSES = {
    "HAProxyManager": "proxy",
    "ProxyActor": "proxy",
    "ServeController": "controller",
    "StateWriter": "state_writer",
}
_REPLICAS = ("gateway", "retriever", "ranker")
_CPU_SAMPLE_S = 0.1


def status(home: Path, surfaces: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The document of `manta status --json`.

    Args:
        home: The home.
        surfaces: What is live, as the registry says.
        settings: They name the broker that is shown while nothing runs.
    """
    run = read(home)
    if run is None or not run.alive():
        kafka = settings.kafka.bootstrap_servers or None
        nothing: dict[str, Any] = {"state": "down", "endpoint": None, "dashboard": None, "kafka": kafka}
        left = {
            "lag": {},
            "disk": disk(home, up=False),
            "retention": retention.current(settings, home, up=False),
            "processes": [],
        }
        return {**nothing, "home": str(home), "surfaces": surfaces, **left}
    return {
        "state": run.state,
        "endpoint": run.endpoint,
        "dashboard": run.dashboard,
        "kafka": run.kafka,
        "home": str(home),
        "surfaces": surfaces,
        "lag": lag(home),
        "disk": disk(home),
        "retention": retention.read(home),
        "processes": processes(run),
    }


def lag(home: Path) -> dict[str, Any]:
    """How far the state is behind the broker: messages not applied yet, and since when the writer is silent.

    `state_messages` is None where a writer is not connected: the broker is away, or the disk has no room.
    `state_jumped_messages`, where there are any: those that the log did not hold any more; `manta state rebuild` helps.
    """
    here = positions_here(home)
    if not here:
        return {}
    silent_s = max(0.0, time.time() - min(one.heartbeat_ms for one in here) / 1000)
    lags, jumped = [one.lag for one in here], sum(one.jumped for one in here)
    for position in here:
        position.close()
    silent = {"state_messages": None if min(lags) < 0 else sum(lags), "state_writer_silent_s": round(silent_s, 3)}
    return silent | ({"state_jumped_messages": jumped} if jumped else {})


def disk(home: Path, *, up: bool = True) -> dict[str, Any]:
    """What state and figures take of the disk, how much room it has, and why the state's writer has stopped if it has.

    Empty where there is no home yet.
    """
    if not home.is_dir():
        return {}
    return {
        "free_bytes": free_bytes(home),
        "state_bytes": used_bytes(StatePaths.of(home).root),
        "stats_bytes": used_bytes(StatsPaths(home).root),
        "stopped": _stopped(home) if up else None,
    }


def _stopped(home: Path) -> str | None:
    paths = StatePaths.of(home)
    for file in (paths.stopped, *sorted(paths.shards.glob("*/stopped"))):
        with contextlib.suppress(FileNotFoundError):  # the writer may go on just now
            return file.read_text()
    here = positions_here(home)
    found = [str(one.shortage) for one in here if one.shortage is not None]
    for position in here:
        position.close()
    return next(iter(found), None)


def processes(run: Run) -> list[dict[str, Any]]:
    """Every process with a role, with its CPU use over a tenth of a second."""
    found: list[tuple[str, str, int, str, int]] = []
    for actor in _actors(run) if run.ray is not None else []:
        role = _role(str(actor.get("class_name", "")))
        if role and actor.get("pid"):
            name = str(actor.get("name") or actor["class_name"])
            restarts = int(actor.get("num_restarts") or 0)
            found.append((role, name, int(actor["pid"]), str(actor.get("node_id", "")), restarts))
    node = next((place for role, _, _, place, _ in found if role == "controller"), "")
    found += [("proxy", "haproxy", pid, node, 0) for pid in _haproxies(run)]
    if run.broker is not None and run.broker.alive():
        found.append(("broker", "noida-db", run.broker.pid, node, run.broker_restarts))
    return _measured(found)


def fetch(run: Run, path: str) -> Any:
    """A JSON answer of the dashboard.

    Raises:
        OSError, ValueError: it does not answer, or not with JSON.
    """
    token = token_path(run.home).read_text().strip()
    request = urllib.request.Request(run.dashboard + path, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def _actors(run: Run) -> list[dict[str, Any]]:
    query = "?limit=1000&detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
    try:
        answer = fetch(run, "/api/v0/actors" + query)
    except (OSError, ValueError):
        return []
    result: list[dict[str, Any]] = answer.get("data", {}).get("result", {}).get("result", [])
    return result


def _role(class_name: str) -> str | None:
    if class_name.startswith("ServeReplica:"):
        deployment = class_name.rsplit(":", 1)[1].lower()
        return next((role for role in _REPLICAS if deployment.startswith(role)), None)
    return _CLASSES.get(class_name)


def _haproxies(run: Run) -> list[int]:
    inside = f"{run.session}/"
    return [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "haproxy" and any(inside in word for word in process.info["cmdline"] or [])
    ]


def _measured(found: list[tuple[str, str, int, str, int]]) -> list[dict[str, Any]]:
    living: list[tuple[tuple[str, str, int, str, int], psutil.Process]] = []
    for entry in found:
        try:
            process = psutil.Process(entry[2])
            process.cpu_percent()
        except psutil.Error:
            continue
        living.append((entry, process))
    if living:
        time.sleep(_CPU_SAMPLE_S)
    rows = []
    for (role, name, pid, node, restarts), process in living:
        try:
            row = {
                "role": role,
                "name": name,
                "pid": pid,
                "node": node,
                "started": Process.of(pid).started,
                "restarts": restarts,
                "cpu_percent": process.cpu_percent(),
                "rss_bytes": process.memory_info().rss,
            }
        except psutil.Error:
            continue
        rows.append(row)
    return rows
