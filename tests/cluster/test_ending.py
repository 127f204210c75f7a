"""However a command ends, what it had started ends with it: Ctrl-C, kill, kill -9, and a machine that went down."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.processes import Process, marked
from deployments.run import Run, read, write
from tests.cluster.manta import START_S, bare, manta

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(START_S)]


def following(home: Path) -> "subprocess.Popen[str]":
    """`manta ingest --follow` on a system of its own, once that stands."""
    command = [sys.executable, "-P", "-m", "scripts.cli", "ingest", "--follow"]
    more = {"MANTA_RAY__NUM_CPUS": "1", "MANTA_RAY__OBJECT_STORE_BYTES": "80000000"}
    process = subprocess.Popen(
        command, env=bare(home, **more), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: (run := read(home)) is not None and run.keeper is not None, START_S - 60)
    return process


def until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def nothing_left(run: Run) -> bool:
    return not marked(run.session) and not run.session.exists() and read(run.home) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_is_ended_leaves_nothing(number: signal.Signals, short_home: Path) -> None:
    process = following(short_home)
    run = read(short_home)
    assert run is not None
    assert run.ray is not None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "Traceback" not in said
        assert nothing_left(run)
    until(lambda: nothing_left(run), 30)  # kill -9: the keeper clears up


def test_the_next_command_clears_what_a_dead_system_left(short_home: Path) -> None:
    with subprocess.Popen(["sleep", "600"], env=bare(short_home, MANTA_SESSION="/tmp/manta-gone")) as orphan:
        process = following(short_home)
        run = read(short_home)
        assert run is not None
        process.kill()
        process.wait()
        until(lambda: nothing_left(run), 30)
        gone = Process(pid=os.getpid(), started=0.0)  # its number lives on in another process
        left = {"session": Path("/tmp/manta-gone"), "ray": gone, "broker": None, "keeper": None, "users": (gone,)}
        write(run.model_copy(update=left))
        assert manta(short_home, "down").returncode == 0
        assert orphan.wait(timeout=10) == -signal.SIGTERM
    assert read(short_home) is None
