"""The command line as a user of a bare machine types it: another process, an empty HOME, nothing in the environment."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from deployments.processes import marked

ROOT = Path(__file__).resolve().parents[2]
START_S = 280.0


def bare(home: Path, **more: str) -> dict[str, str]:
    """An environment with an empty HOME, this MANTA_HOME, and what `more` adds."""
    empty = home / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    return {"HOME": str(empty), "PATH": os.environ["PATH"], "MANTA_HOME": str(home), "OMP_NUM_THREADS": "1", **more}


def manta(home: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """One command, to its end."""
    command = [sys.executable, "-P", "-m", "scripts.cli", *words]
    return subprocess.run(
        command, env=bare(home, **more), cwd=home, capture_output=True, text=True, timeout=START_S, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_to_others(session: Path) -> set[tuple[str, int]]:
    """(process name, port) of everything of a session that listens on more than loopback."""
    inside = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    found = set()
    for process in marked(session):
        try:
            running = psutil.Process(process.pid)
            for connection in running.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in inside:
                    found.add((running.name(), connection.laddr.port))
        except psutil.NoSuchProcess:
            continue
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
