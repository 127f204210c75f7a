"""A real Apache Kafka broker on loopback, from Maven Central, for tests and trying out.

    scripts/kafka install                     put the broker's jars in the cache (once)
    scripts/kafka start [--dir D] [--port P] [--property K=V ...]
    scripts/kafka stop|kill9|status [--dir D]

KRaft, one node, broker and controller in one process. Needs Java 17+ and Maven on the PATH. One replica of
everything, short checks, no rebalance delay: not for production.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

VERSION = "4.3.1"
LOG4J_VERSION = "2.25.4"
DEFAULTS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "auto.create.topics.enable": "false",
    "log.retention.check.interval.ms": "1000",
    "log.cleaner.backoff.ms": "500",
    "log.initial.task.delay.ms": "500",
    # Back 3 s after kill -9, not 12: the dead broker's session has to end first.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
}
JVM = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
LOG4J = """Configuration:
  Appenders: {Console: {name: out, PatternLayout: {pattern: "%d %p %c: %m%n"}}}
  Loggers: {Root: {level: WARN, AppenderRef: {ref: out}}}
"""
# ApiVersions v0 with correlation id 1 and client "ping": any broker that is up answers it.
PING = bytes.fromhex("0000000e0012000000000001000470696e67")


class KafkaError(Exception):
    """What went wrong with the broker, in one line, and what to do about it."""


def cache_folder() -> Path:
    """Where the jars live: `$MANTA_CACHE`, else `~/.cache/manta`."""
    named = os.environ.get("MANTA_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "manta") / f"kafka-{VERSION}"


def missing_tools() -> list[str]:
    """Which of java and mvn are not on the PATH."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def install() -> Path:
    """Puts the broker's jars in the cache unless they are there; returns their folder."""
    cache = cache_folder()
    libs = cache / "libs"
    if (cache / "complete").exists():
        return libs
    if missing := missing_tools():
        raise KafkaError(
            f"{' and '.join(missing)} not found; Java 17+ and Maven are needed (Debian: openjdk-17-jre-headless maven)"
        )
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "pom.xml").write_text(_pom())
    command = ["mvn", "-B", "-q", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={libs}"]
    done = subprocess.run(command, cwd=cache, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line] or ["no reason given"]
        raise KafkaError(f"Maven could not fetch Kafka {VERSION}: {reasons[0]}")
    (cache / "log4j2.yaml").write_text(LOG4J)
    (cache / "complete").touch()
    return libs


def start(home: Path, port: int = 0, properties: Mapping[str, str] | None = None) -> str:
    """Starts the broker of `home` and waits until it answers; returns `HOST:PORT`.

    Port 0 takes a free one. Port and properties are fixed at the first start of a folder; a later start that
    names another port is refused.
    """
    home = home.resolve()
    libs = install()
    if alive(home):
        raise KafkaError(f"already running in {home}")
    home.mkdir(parents=True, exist_ok=True)
    conf = home / "server.properties"
    port = _configure(conf, home, port, properties or {})
    java = ["java", f"-Dlog4j2.configurationFile={cache_folder() / 'log4j2.yaml'}", "-cp", f"{libs}/*"]
    if not (home / "data" / "meta.properties").exists():
        _format(java, conf)
    with (home / "log").open("a") as log:
        process = subprocess.Popen(
            [java[0], *JVM, *java[1:], "kafka.Kafka", str(conf)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    (home / "pid").write_text(str(process.pid))
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if answers(port):
            return f"127.0.0.1:{port}"
        time.sleep(0.1)
    end(home, signal.SIGKILL)
    raise KafkaError(f"the broker did not start; {home / 'log'} ends with:\n{_tail(home / 'log')}")


def end(home: Path, number: signal.Signals) -> bool:
    """Sends the broker of `home` a signal and waits until it has gone; False where none runs."""
    home = home.resolve()
    pid = alive(home)
    if pid is None:
        return False
    os.kill(pid, number)
    deadline = time.monotonic() + 30
    while alive(home) is not None or _going(pid):
        if time.monotonic() > deadline:
            raise KafkaError(f"process {pid} has not ended within 30 s")
        _reap(pid)
        time.sleep(0.05)
    (home / "pid").unlink(missing_ok=True)
    return True


def alive(home: Path) -> int | None:
    """Process id of the broker of `home`, where the recorded process still is one."""
    try:
        pid = int((home / "pid").read_text())
        return pid if str(home).encode() in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None


def answers(port: int) -> bool:
    """Whether a Kafka broker answers on loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(PING)
            connection.settimeout(2)
            return len(connection.recv(16)) >= 10
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/kafka", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["install", "start", "stop", "kill9", "status"])
    default = Path(os.environ.get("MANTA_HOME") or ".manta") / "kafka"
    parser.add_argument("--dir", type=Path, default=default, help="folder of the broker (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9092, help="default: %(default)s; 0: a free one")
    parser.add_argument("--property", action="append", default=[], metavar="K=V", help="broker property; repeats")
    given = parser.parse_args(arguments)
    if wrong := [text for text in given.property if "=" not in text]:
        parser.error(f"--property {wrong[0]}: wanted K=V")
    properties = dict(text.split("=", 1) for text in given.property)
    try:
        return _do(given.verb, given.dir.resolve(), given.port, properties)
    except KafkaError as error:
        print(f"kafka: {error}", file=sys.stderr)
    except OSError as error:
        print(f"kafka: {error.strerror}: {error.filename or given.dir}", file=sys.stderr)
    return 1


def _do(verb: str, home: Path, port: int, properties: dict[str, str]) -> int:
    if verb == "install":
        install()
    elif verb == "start":
        print(start(home, port, properties))
    elif verb == "status":
        pid = alive(home)
        print(f"running, pid {pid}" if pid else "not running")
        return 0 if pid else 1
    elif not end(home, signal.SIGKILL if verb == "kill9" else signal.SIGTERM):
        raise KafkaError(f"not running in {home}")
    return 0


def _configure(conf: Path, home: Path, port: int, properties: Mapping[str, str]) -> int:
    """Writes the broker's properties at the first start; returns the port that holds."""
    if conf.exists():
        written = dict(line.split("=", 1) for line in conf.read_text().splitlines())
        fixed = int(written["advertised.listeners"].rsplit(":", 1)[1])
        if port not in (0, fixed):
            raise KafkaError(f"{home} was made with port {fixed}, not {port}: use that port or another --dir")
        port = fixed
    port = port or free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise KafkaError(f"port {port} is in use: end what listens there or name another --port") from None
    if not conf.exists():
        controller = free_port()
        settings = {
            **DEFAULTS,
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "log.dirs": str(home / "data"),
            **properties,
        }
        conf.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    return port


def _format(java: list[str], conf: Path) -> None:
    tool = [*java, "kafka.tools.StorageTool"]
    named = subprocess.run([*tool, "random-uuid"], check=True, capture_output=True, text=True).stdout.split()[-1]
    command = [*tool, "format", "--standalone", "-t", named, "-c", str(conf)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KafkaError(f"the broker's storage cannot be formatted: {(done.stderr or done.stdout).strip()}")


def _pom() -> str:
    wanted = [
        ("org.apache.kafka", "kafka_2.13", VERSION),
        ("org.apache.logging.log4j", "log4j-core", LOG4J_VERSION),
        ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
    ]
    lines = [
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in wanted
    ]
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>manta</groupId><artifactId>broker</artifactId>"
        f"<version>1</version><dependencies>{''.join(lines)}</dependencies></project>\n"
    )


def free_port() -> int:
    """A port below those that outgoing connections get: a client that knocks at a dead broker could else take it."""
    for port in random.sample(range(10_000, 20_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise KafkaError("no free port between 10000 and 20000")


def _going(pid: int) -> bool:
    """Whether a process that is being killed still holds its ports: until its last thread has closed them."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X") or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def _reap(pid: int) -> None:
    """Takes the exit status where the broker is our own child, so that it does not stay as a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
