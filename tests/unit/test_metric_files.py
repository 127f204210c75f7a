"""Metrics of a node's replicas: dead ones leave few files, and no counter falls."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.values import MultiProcessValue

from deployments.metric_files import FOLDER, exposition, keep_in_files

HELP = "Help."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    return tmp_path


def leave(replica: str, events: int) -> None:
    """The files of a replica that was killed."""
    value = MultiProcessValue(lambda: replica)  # type: ignore[no-untyped-call]
    value("counter", "manta_events", "manta_events_total", ("outcome",), ("accepted",), HELP).inc(events)
    for bound in ("0.1", "+Inf"):
        name = "manta_request_seconds"
        value("histogram", name, f"{name}_bucket", ("surface", "le"), ("home", bound), HELP).inc(2)
    gauge = value(
        "gauge", "manta_gateway", "manta_gateway", ("replica",), (replica,), HELP, multiprocess_mode="liveall"
    )
    gauge.set(1)
    value.close_all_files()


def shown(folder: Path) -> dict[str, float]:
    lines = [line for line in exposition(folder).decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


ACCEPTED = 'manta_events_total{outcome="accepted"}'
FAST = 'manta_request_seconds_bucket{le="0.1",surface="home"}'
ALL = 'manta_request_seconds_count{surface="home"}'


def test_fifty_dead_replicas_leave_few_files_and_all_their_counts(folder: Path) -> None:
    for number in range(50):
        leave(f"gateway-{number:08x}", number)
    before = shown(folder)
    assert (before[ACCEPTED], before[FAST], before[ALL]) == (1225, 100, 200)
    assert not [name for name in before if name.startswith("manta_gateway")]  # a gauge of the dead says nothing
    for start in range(3):
        keep_in_files(folder, f"gateway-next-{start}")
        assert shown(folder) == before
        assert len(list(folder.iterdir())) == 3 + (start + 1)  # counters, histograms, the lock; one of each that lives
    leave("gateway-late", 5)
    keep_in_files(folder, "gateway-last")
    assert shown(folder)[ACCEPTED] == 1230
    assert "folded" not in exposition(folder).decode()


def test_a_fold_that_is_cut_short_counts_nothing_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        leave(f"gateway-{number}", 10)
    before = shown(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("killed here")))
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("or here")))
        with pytest.raises(OSError, match="here"):
            keep_in_files(folder, "gateway-a")
    assert shown(folder) == before
    unlink, calls = Path.unlink, []

    def killed_at_the_second(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".db":
            calls.append(path)
            if len(calls) == 2:
                raise OSError("killed")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_at_the_second)
        with pytest.raises(OSError, match="killed"):
            keep_in_files(folder, "gateway-b")
    assert shown(folder) == before
    keep_in_files(folder, "gateway-c")
    assert shown(folder) == before


def test_an_unreadable_file_takes_nothing_else_with_it(folder: Path) -> None:
    leave("gateway-0", 10)
    (folder / "counter_gateway-1.db").touch()
    (folder / "histogram_gateway-2.db").write_bytes(b"\xff\xff\xff\x7f" + b"\x00" * 100)
    keep_in_files(folder, "gateway-a")
    assert shown(folder)[ACCEPTED] == 10


def test_a_stopped_fold_holds_nobody_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.metric_files.LOCK_S", 0.05)
    leave("gateway-0", 10)
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    keep_in_files(folder, "gateway-a")
    assert shown(folder)[ACCEPTED] == 10
    os.close(handle)


REPLICA = """
import sys, time
from pathlib import Path
from deployments.metric_files import keep_in_files
keep_in_files(Path(sys.argv[1]), "gateway-child")
from deployments.metrics import GatewayMetrics
metrics = GatewayMetrics("gateway-child")
metrics.events("accepted", 7)
metrics.figure("in_flight", 3)
metrics.dropped(2)
metrics.dropped(5)
print("ready", flush=True)
time.sleep(60)
"""


def test_what_lives_is_not_folded(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", REPLICA, str(folder)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        keep_in_files(folder, "gateway-a")
        assert (folder / "counter_gateway-child.db").exists()
        found = shown(folder)
        assert (found[ACCEPTED], found["manta_impressions_dropped_total"]) == (7, 5)
        assert [value for name, value in found.items() if name.startswith("manta_gateway")] == [3]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not [name for name in shown(folder) if name.startswith("manta_gateway")]
    keep_in_files(folder, "gateway-b")
    assert not list(folder.glob("*child*"))
    assert shown(folder)[ACCEPTED] == 7
