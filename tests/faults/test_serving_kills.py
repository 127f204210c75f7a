"""One system on Apache Kafka under load, its processes killed -9 in turn: what clients see, and what survives."""

import http.client
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from app.settings import load_settings
from deployments.processes import Process
from deployments.run import Run, read
from deployments.status import processes
from scripts import apache_kafka
from tests.cluster.manta import START_S, free_port, manta
from tests.unit.tiny_bundle import register_tiny

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.cluster,
    pytest.mark.alone,
    pytest.mark.faults,
    pytest.mark.timeout(2 * START_S),
]

CLIENTS = 4
PAUSE_S = 0.02
WAIT = "503 with Retry-After"
# Issue 4 wants 15 s (HAProxy: 8 s); what was measured is printed, the slack is for a busy machine.
AS_BEFORE_S, PROXY_S = 40.0, 20.0
ROLES = Counter(gateway=2, controller=1, state_writer=1, proxy=2)
SETTINGS = """
surfaces: {home: {timeout_ms: 3000}}
serve: {gateway: {min_replicas: 2, max_replicas: 2, num_cpus: 0.1}}
ray: {num_cpus: 2, object_store_bytes: 80000000}
"""


class Broker:
    """The broker of these tests alone: they kill it and start it again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = apache_kafka.start(folder)

    def kill(self) -> None:
        apache_kafka.end(self._folder, signal.SIGKILL)

    def start(self) -> None:
        apache_kafka.start(self._folder)


@pytest.fixture(scope="module")
def broker(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def up(short_home: Path, broker: Broker) -> Iterator[Run]:
    file = short_home / "manta.yaml"
    file.write_text(SETTINGS)
    register_tiny(load_settings(file, {}), short_home, "a1")
    try:
        assert manta(short_home, "bundles", "promote", "a1", "--force", MANTA_SETTINGS=str(file)).returncode == 0
        named = {"MANTA_SETTINGS": str(file), "MANTA_KAFKA__BOOTSTRAP_SERVERS": broker.address}
        started = manta(short_home, "up", "--port", str(free_port()), **named)
        assert started.returncode == 0, started.stderr
        run = read(short_home)
        assert run is not None
        yield run
    finally:
        manta(short_home, "down")


class Caller:
    """One keep-alive connection, made anew after an error."""

    def __init__(self, run: Run, timeout_s: float = 30.0) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(run.endpoint).netloc, timeout=timeout_s)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, str | None]:
        """(status, JSON or text, Retry-After)."""
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        is_json = (response.headers.get_content_type() or "").endswith("json")
        return response.status, json.loads(text) if is_json else text, response.headers["retry-after"]


@dataclass
class Ledger:
    """Events by the time that each alone has; an event is sent until it is acknowledged."""

    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def next(self) -> dict[str, str]:
        number = next(self._numbers)
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        event = {"user_id": f"w{number % 7}", "item_id": f"i{number % 30}", "event_type": "click"}
        return event | {"event_id": f"e{number}", "event_time": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def accept(self, event: dict[str, str]) -> None:
        self.acknowledged.setdefault(event["user_id"], set()).add(event["event_time"][:19])


class Load:
    """Clients that ask for recommendations, and one that tells events, until the end of the block."""

    def __init__(self, run: Run, ledger: Ledger) -> None:
        self.answers = self.degraded = self.events = 0
        self.failed: list[str] = []
        self.refused: list[str] = []
        self.wrong: list[str] = []
        self._run, self._ledger = run, ledger
        self._lock, self._stop = threading.Lock(), threading.Event()
        tasks: list[Callable[[], None]] = [*[self._asks] * CLIENTS, self._tells]
        self._threads = [threading.Thread(target=task) for task in tasks]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _asks(self) -> None:
        caller = Caller(self._run)
        for number in itertools.count():
            if self._stop.wait(PAUSE_S):
                return
            try:
                status, answer, _ = caller.ask("POST", "/v1/recommend", {"user_id": f"w{number % 9}", "k": 5})
                failed = None if status == 200 else f"{status} {answer}"
            except (OSError, http.client.HTTPException) as error:
                failed = repr(error)
            with self._lock:
                if failed:
                    self.failed.append(failed)
                    continue
                self.answers += 1
                self.degraded += answer["degraded"] is not None
                if len(answer["items"]) != 5:
                    self.wrong.append(str(answer))

    def _tells(self) -> None:
        caller = Caller(self._run)
        event = self._ledger.next()
        while not self._stop.wait(PAUSE_S):
            try:
                status, answer, retry = caller.ask("POST", "/v1/events", event)
            except (OSError, http.client.HTTPException) as error:
                self.refused.append(repr(error))
                continue
            if status == 202 and answer["accepted"] == 1:
                self._ledger.accept(event)
                self.events += 1
                event = self._ledger.next()
            elif status == 503 and retry:
                self.refused.append(WAIT)
            else:
                self.refused.append(f"{status} {answer}")


def pids(run: Run, role: str, name: str = "") -> list[int]:
    return [row["pid"] for row in processes(run) if row["role"] == role and name in row["name"].lower()]


def only(run: Run, role: str, name: str = "") -> int:
    """The one process of a role; a proxy that is being reloaded may for a moment be two, or none yet."""
    until(lambda: len(pids(run, role, name)) == 1, AS_BEFORE_S)
    return pids(run, role, name)[0]


def until(done: Callable[[], bool], seconds: float) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.05)


def answers(run: Run) -> bool:
    """A connection of its own gets an answer of the whole chain."""
    try:
        status, answer, _ = Caller(run, 5).ask("POST", "/v1/recommend", {"k": 5})
    except (OSError, http.client.HTTPException):
        return False
    return status == 200 and answer["degraded"] is None


def as_before(run: Run, victim: int) -> bool:
    """Everything runs, the dead process is replaced, the endpoint is ready and applies an event at once."""
    if not answers(run):
        return False
    event = {"user_id": "probe", "item_id": "i1", "event_type": "click"}
    try:
        ready, _, _ = Caller(run, 5).ask("GET", "/readyz")
        status, told, _ = Caller(run, 10).ask("POST", "/v1/events?wait=applied", event)
    except (OSError, http.client.HTTPException):
        return False
    if (ready, status) != (200, 202) or told["applied"] is not True:
        return False
    rows = processes(run)
    return Counter(row["role"] for row in rows) >= ROLES and victim not in {row["pid"] for row in rows}


@dataclass
class Kill:
    """One row of the table."""

    target: str
    load: Load
    answers_s: float
    as_before_s: float

    def __str__(self) -> str:
        seen, events = self.load, Counter(self.load.refused)
        return (
            f"{self.target:12} {seen.answers:6} answers {seen.degraded:4} degraded {len(seen.failed):4} failed | "
            f"answers again {self.answers_s:5.1f} s, as before {self.as_before_s:5.1f} s | "
            f"{seen.events} events acknowledged, not: {dict(events)}"
        )


def killed(run: Run, ledger: Ledger, target: str, victim: int) -> Kill:
    """Kills a process under load and waits until all is as before."""
    with Load(run, ledger) as load:
        began, process = time.monotonic(), Process.of(victim)
        os.kill(victim, signal.SIGKILL)
        until(lambda: not process.alive(), AS_BEFORE_S)
        until(lambda: answers(run), PROXY_S)
        answers_s = time.monotonic() - began
        until(lambda: as_before(run, victim), AS_BEFORE_S)
        kill = Kill(target, load, answers_s, time.monotonic() - began)
        time.sleep(1)
    print(kill)
    return kill


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger()


def checked(kill: Kill, failures: int) -> None:
    """Never a wrong answer, at most so many failed requests, and events were acknowledged."""
    assert kill.load.wrong == []
    assert len(kill.load.failed) <= failures, kill.load.failed[:20]
    assert kill.load.answers > 20
    assert kill.load.events > 0


@pytest.mark.parametrize("role", ["controller", "state_writer"])
def test_without_it_no_request_fails(up: Run, ledger: Ledger, role: str) -> None:
    until(lambda: as_before(up, 0), START_S)
    kill = killed(up, ledger, role, only(up, role))
    checked(kill, 0)
    assert kill.load.refused == []


class InFlight:
    """Requests on connections of their own, told apart by what became of them."""

    def __init__(self, run: Run, count: int) -> None:
        self.said: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(run,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, run: Run) -> None:
        try:
            status, answer, retry = Caller(run).ask("POST", "/v1/recommend", {"k": 5})
        except (OSError, http.client.HTTPException) as error:
            self.said[type(error).__name__] += 1
            return
        is_wait = status == 503 and retry and isinstance(answer, dict)
        self.said[WAIT if is_wait else "answered" if status == 200 else f"{status} {answer}"] += 1

    def ended(self) -> Counter[str]:
        for thread in self._threads:
            thread.join()
        return self.said


def test_one_of_two_gateways_takes_only_what_was_in_flight_on_it(up: Run, ledger: Ledger) -> None:
    until(lambda: as_before(up, 0), START_S)
    victim = pids(up, "gateway")[0]
    os.kill(victim, signal.SIGSTOP)  # whatever comes to it now is in flight when it dies
    waiting = InFlight(up, 10 * CLIENTS)
    kill = killed(up, ledger, "gateway", victim)
    said = waiting.ended()
    assert said[WAIT] > 0, said
    assert said.keys() <= {"answered", WAIT, "RemoteDisconnected"}, said
    checked(kill, CLIENTS)
    assert len(kill.load.refused) <= 1, "the client that tells has one request in flight"


def test_the_proxy_is_whole_again_within_seconds(up: Run, ledger: Ledger) -> None:
    until(lambda: as_before(up, 0), START_S)
    kill = killed(up, ledger, "haproxy", only(up, "proxy", "haproxy"))
    # First nobody listens, then for a moment Ray's own text answers, until the new HAProxy knows the gateways.
    between = [said for said in kill.load.failed if "Refused" in said or said.startswith(("404 b", "500 b", "503 "))]
    assert len(kill.load.failed) - len(between) <= CLIENTS, "those in flight"
    checked(kill, len(kill.load.failed))


def test_without_a_broker_answers_go_on_and_events_wait(up: Run, ledger: Ledger, broker: Broker) -> None:
    until(lambda: as_before(up, 0), START_S)
    with Load(up, ledger) as load:
        broker.kill()
        time.sleep(6)
        assert answers(up), "the chain is whole without a broker"
        broker.start()
        began = time.monotonic()
        until(lambda: as_before(up, 0), AS_BEFORE_S)
        kill = Kill("broker", load, 0.0, time.monotonic() - began)
        time.sleep(1)
    print(kill)
    checked(kill, 0)
    assert set(load.refused) == {WAIT}


def test_every_acknowledged_event_is_there_once(up: Run, ledger: Ledger) -> None:
    assert sum(map(len, ledger.acknowledged.values())) > 100
    for user, times in ledger.acknowledged.items():
        status, told, _ = Caller(up).ask("GET", f"/v1/users/{user}/history")
        assert status == 200
        found = Counter(item["event_time"][:19] for item in told["items"])
        assert {at: found[at] for at in times} == dict.fromkeys(times, 1)
        assert max(found.values()) == 1
