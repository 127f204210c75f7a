"""run.json, ports and processes: what keeps two systems apart and finds what a dead one left."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.errors import MantaError, SettingsError
from deployments.ports import BLOCK, Ports, require_free, reserve
from deployments.processes import Interrupted, Process, end, marked, unwinding
from deployments.run import Run, locked, read, running, update, write
from scripts.session import lift_options


def run_of(home: Path, **changes: object) -> Run:
    plain: dict[str, object] = {
        "home": home,
        "session": home / "session",
        "started": 0.0,
        "endpoint": "http://127.0.0.1:8000",
        "kafka": "127.0.0.1:9092",
        "embedded_broker": False,
        "ports": Ports.of(20_000),
    }
    return Run.model_validate(plain | changes)


def test_no_port_is_given_twice() -> None:
    ports = Ports.of(20_000)
    single = [port for name, port in ports if not name.startswith("replicas_")]
    ranges = [ports.replicas_http, ports.replicas_grpc]
    spread = [*single, *(port for first, last in ranges for port in range(first, last + 1))]
    assert len(set(spread)) == len(spread)
    assert max(spread) < 20_000 + BLOCK


def test_reserving_skips_what_is_taken(tmp_path: Path) -> None:
    short = Path(f"/tmp/p-{os.getpid()}")
    try:
        first, ports = reserve(tmp_path, str(short))
        second, others = reserve(tmp_path, str(short))
        assert first != second
        assert abs(ports.gcs - others.gcs) >= BLOCK
        with socket.socket() as busy:
            blocked = others.gcs + BLOCK if others.gcs + 2 * BLOCK < 32_000 else 20_000
            busy.bind(("127.0.0.1", blocked + 3))
            third, _ = reserve(tmp_path, str(short))
            assert third.name != f"manta-{blocked}"
    finally:
        subprocess.run(["rm", "-rf", str(short)], check=True)


def test_a_session_folder_whose_sockets_would_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ray\.session_dir"):
        reserve(tmp_path, "/tmp/" + "x" * 60)


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(MantaError, match="choose another port"):
            require_free(busy.getsockname()[1], "127.0.0.1", "the endpoint")


def test_a_system_lives_as_long_as_someone_needs_it(tmp_path: Path) -> None:
    me = Process.of()
    dead = Process(pid=me.pid, started=me.started - 60)
    assert not dead.alive(), "another process with the same number"
    assert run_of(tmp_path, users=[me]).alive()
    assert not run_of(tmp_path, users=[dead]).alive()
    assert not run_of(tmp_path, users=[me], ray=dead).alive()
    assert not run_of(tmp_path, users=[me], owner=dead).alive(), "what its owner started for itself keeps nothing alive"
    assert run_of(tmp_path, temporary=False, ray=me).alive()
    assert not run_of(tmp_path, temporary=False, ray=dead, users=[me]).alive()


def test_run_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = write(run_of(tmp_path, users=[Process.of()]))
    assert read(tmp_path) == run == running(tmp_path)
    changed = update(tmp_path, run.session, state="up")
    assert changed is not None
    assert changed.state == "up"
    assert update(tmp_path, tmp_path / "another", state="starting") is None
    (tmp_path / "run.json").write_text("{half")
    assert read(tmp_path) is None


def test_the_lock_waits_for_another_holder(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_processes_are_found_by_their_marker_and_ended(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", stubborn], env={**os.environ, "MANTA_SESSION": str(tmp_path)}, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
    found = marked(tmp_path)
    assert [process.pid for process in found] == [child.pid]
    assert marked(tmp_path / "other") == []
    end(found, 0.2)
    assert marked(tmp_path) == []
    child.wait()


def test_signals_unwind() -> None:
    def interrupted() -> None:
        with unwinding():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        interrupted()
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_settings_and_home_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_HOME", "/before")
    monkeypatch.setenv("MANTA_SETTINGS", "")
    assert lift_options(["up", "--home", "/h", "--port", "1", "--settings=/s.yaml"]) == ["up", "--port", "1"]
    assert (os.environ["MANTA_HOME"], os.environ["MANTA_SETTINGS"]) == ("/h", "/s.yaml")
    assert lift_options(["up", "--home"]) == ["up", "--home"], "the parser says what is missing"


def test_an_interruption_that_a_destructor_swallows_comes_again() -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    def interrupted() -> None:
        with unwinding():
            Swallows()
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                time.sleep(0.01)

    hook = sys.unraisablehook
    with pytest.raises(Interrupted) as caught:
        interrupted()
    assert caught.value.code == 128 + signal.SIGTERM
    assert sys.unraisablehook is hook
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
