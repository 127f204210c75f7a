"""The embedded Kafka broker, for trying out: PyPI's `noida-db` as a child, its data under `$MANTA_HOME/kafka`.

It keeps its log in memory and saves it every 2 s: kill -9 loses what came since. `deployments.recovery` starts it
again, notes in the lake what is gone, and restores `items` and `users` from there.
"""

import importlib.util
import os
import socket
import subprocess
import time
from pathlib import Path

from app.errors import MantaError
from app.events.connection import check_connection, guarded
from app.settings import KafkaSettings
from deployments.processes import Process, end

# ApiVersions v0 with correlation id 1 and client "ping": any broker that is up answers it.
PING = bytes.fromhex("0000000e0012000000000001000470696e67")


def start(home: Path, port: int, environment: dict[str, str]) -> Process:
    """Starts the broker on loopback and waits until it answers.

    Raises:
        MantaError: it is not installed, or does not answer within 20 s.
    """
    program = _program()
    data = home / "kafka"
    data.mkdir(parents=True, exist_ok=True)
    log_path = home / "logs" / "broker.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [str(program), "start", "--only", "kafka", "--kafka-port", str(port), "--host", "127.0.0.1"]
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            [*command, "--data-dir", str(data)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=data,
            start_new_session=True,
        )
    process = Process.of(child.pid)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        if answers("127.0.0.1", port):
            return process
        time.sleep(0.05)
    end([process], 1.0)
    raise MantaError(f"the embedded broker did not start; {log_path} ends with: {_tail(log_path)}")


def answers(host: str, port: int) -> bool:
    """Whether a Kafka broker answers there within a second."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(PING)
            return len(connection.recv(16)) >= 10
    except OSError:
        return False


def require(settings: KafkaSettings) -> None:
    """Raises MantaError where none of the named brokers answers, or they turn this client away; says why."""
    if guarded(settings):
        check_connection(settings)
        return
    for address in settings.bootstrap_servers.split(","):
        host, _, port = address.strip().rpartition(":")
        if host and port.isdigit() and answers(host.strip("[]"), int(port)):
            return
    raise MantaError(
        f"no Kafka broker answers at {settings.bootstrap_servers}: start it, or correct kafka.bootstrap_servers"
    )


def _program() -> Path:
    """The binary itself: its Python wrapper would survive it, or it the wrapper."""
    package = importlib.util.find_spec("noida_db")
    if package is None or package.origin is None:
        raise MantaError(
            "the embedded broker is not installed: `pip install 'manta[demo]'`, or name a Kafka with "
            "kafka.bootstrap_servers (MANTA_KAFKA__BOOTSTRAP_SERVERS=HOST:PORT)"
        )
    program = Path(package.origin).with_name("noida-db")
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    return program


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return " | ".join([line for line in lines if line.strip()][-3:])
