"""Events in at full flow while everything on their way is killed -9 at random; then lake and state against a ledger.

What the clients were acknowledged must stand in the lake and in the histories once each: none lost, none doubled.
"""

import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.lake.tables import open_lake
from app.settings import load_settings
from deployments.processes import Process
from deployments.run import Run, read
from deployments.status import processes
from scripts import apache_kafka
from tests.cluster.manta import ROOT, bare, free_port, manta

TARGETS = ("broker", "ingest", "state_writer", "gateway")
BATCH = 100
CLIENTS = 2
PAUSES_S = (2.0, 6.0)  # between kills
SETTLE_S = 120.0
SETTINGS = """
surfaces: {home: {}}
serve: {gateway: {min_replicas: 2, max_replicas: 2, num_cpus: 0.1}}
ray: {num_cpus: 2, object_store_bytes: 150000000}
lake: {partition: month}
ingest: {chunk_rows: 50000, task_rows: 25000}
"""


@dataclass
class Report:
    """What came of it. `lost` and `doubled` count events; the state's count entries of histories."""

    acknowledged: int = 0
    tries: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lake_rows: int = 0
    lost_in_lake: int = 0
    doubled_in_lake: int = 0
    strange_in_lake: int = 0
    wrong_histories: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def show(self) -> None:
        """Prints the table."""
        table = Table(title=f"{self.acknowledged:,} events acknowledged in {self.seconds:.0f} s")
        table.add_column("killed -9")
        table.add_column("times", justify="right")
        for target in TARGETS:
            table.add_row(target, str(self.kills[target]))
        table.add_section()
        table.add_row("requests that had to be repeated", str(self.tries - self.acknowledged // BATCH))
        table.add_row("lost, doubled, strange in the lake", f"{self.lost_in_lake}, {self.doubled_in_lake}, "
                      f"{self.strange_in_lake}")  # fmt: skip
        table.add_row("histories that differ", str(len(self.wrong_histories)))
        Console(stderr=True).print(table)


def soak(home: Path, folder: Path, *, events: int, least_kills: int, seed: int = 0) -> Report:
    """Starts a broker and a system of its own, and ends them.

    Args:
        home: MANTA_HOME, a short path.
        folder: the broker's.
        events: to acknowledge at least.
        least_kills: of each target.
    """
    report, began = Report(), time.monotonic()
    address = apache_kafka.start(folder)
    file = home / "manta.yaml"
    file.write_text(SETTINGS)
    named = {"MANTA_SETTINGS": str(file), "MANTA_KAFKA__BOOTSTRAP_SERVERS": address}
    try:
        started = manta(home, "up", "--port", str(free_port()), **named)
        assert started.returncode == 0, started.stderr
        run = read(home)
        assert run is not None
        ledger = Ledger(events)
        with _ingesting(home, named) as ingest, ledger.clients(run, report):
            _kill_at_random(run, folder, ingest, ledger, report, least_kills, random.Random(seed))
            ledger.finish()
        done = manta(home, "ingest", **named)
        assert done.returncode == 0, done.stderr
        _compare_lake(home, file, ledger, report)
        _compare_state(run, ledger, report)
    finally:
        manta(home, "down")
        apache_kafka.end(folder, signal.SIGKILL)
    report.acknowledged, report.seconds = len(ledger.acknowledged), time.monotonic() - began
    return report


class Ledger:
    """Events numbered one by one; a batch is sent under the same ids until it is acknowledged."""

    def __init__(self, wanted: int) -> None:
        self.users = max(50, wanted // 500)  # far fewer events each than a history keeps
        self.acknowledged: set[int] = set()
        self._wanted = wanted
        self._numbers = itertools.count(step=BATCH)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._failed: list[str] = []
        self._enough = threading.Event()

    def event(self, number: int) -> dict[str, str]:
        """The event of that number; its time is its own."""
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        event = {"user_id": f"w{number % self.users}", "item_id": f"i{number % 30}", "event_type": "click"}
        return event | {"event_id": f"e{number}", "event_time": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def finish(self) -> None:
        """Waits until as many as wanted are acknowledged, then for the clients' last batches."""
        self._enough.wait()
        self._stop.set()

    @property
    def done(self) -> bool:
        return self._enough.is_set()

    @contextmanager
    def clients(self, run: Run, report: Report) -> Iterator[None]:
        """Sends inside the block."""
        threads = [threading.Thread(target=self._send, args=(run, report)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        assert not self._failed, self._failed[:5]

    def _send(self, run: Run, report: Report) -> None:
        connection = http.client.HTTPConnection(run.endpoint.removeprefix("http://"), timeout=30)
        while not self._stop.wait(0.2 if self.done else 0.0):  # enough are in: no more than keep the kills company
            with self._lock:
                first = next(self._numbers)
            body = json.dumps([self.event(number) for number in range(first, first + BATCH)])
            while True:  # once begun, until it is acknowledged: what it is worth must be known
                status, text = _post(connection, body)
                with self._lock:
                    report.tries += 1
                if status == 202:
                    break
                if status not in (0, 503, 404, 500):  # while no gateway lives, Ray's proxy itself answers
                    self._failed.append(f"{status} {text!r}")
                    self._enough.set()  # what it waits for would never come
                    return
                time.sleep(0.2)
            told = json.loads(text)
            if told["accepted"] != BATCH:
                self._failed.append(str(told))
            with self._lock:
                self.acknowledged.update(range(first, first + BATCH))
                if len(self.acknowledged) >= self._wanted:
                    self._enough.set()


def _post(connection: http.client.HTTPConnection, body: str) -> tuple[int, bytes]:
    try:
        connection.request("POST", "/v1/events", body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return 0, str(error).encode()


class _Ingest:
    """`manta ingest --follow`, started again whenever it was killed or has ended."""

    def __init__(self, home: Path, named: dict[str, str]) -> None:
        self._home, self._named = home, named
        self._log = (home / "logs" / "soak-ingest.log").open("ab")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "scripts.cli", "ingest", "--follow"]
        environment = bare(self._home, **self._named)
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def look(self) -> None:
        """An outage may have ended it: whoever runs it starts it again."""
        if self.process.poll() is not None:
            self.start()


@contextmanager
def _ingesting(home: Path, named: dict[str, str]) -> Iterator[_Ingest]:
    ingest = _Ingest(home, named)
    try:
        yield ingest
    finally:
        ingest.kill()


def _kill_at_random(
    run: Run, folder: Path, ingest: _Ingest, ledger: Ledger, report: Report, least: int, draw: random.Random
) -> None:
    """Until enough events are acknowledged and every target was killed often enough."""
    while not ledger.done or any(report.kills[target] < least for target in TARGETS):
        time.sleep(draw.uniform(*PAUSES_S))
        ingest.look()
        missing = [target for target in TARGETS if report.kills[target] < least]
        target = draw.choice(missing or TARGETS)
        if target == "broker":
            apache_kafka.end(folder, signal.SIGKILL)
            time.sleep(draw.uniform(0.5, 2.0))
            apache_kafka.start(folder)
        elif target == "ingest":
            ingest.kill()
            ingest.start()
        elif not _kill(run, target, draw):
            continue
        report.kills[target] += 1


def _kill(run: Run, role: str, draw: random.Random) -> bool:
    found = [row["pid"] for row in processes(run) if row["role"] == role]
    if not found:
        return False
    victim = Process.of(draw.choice(found))
    os.kill(victim.pid, signal.SIGKILL)
    return True


def _compare_lake(home: Path, file: Path, ledger: Ledger, report: Report) -> None:
    lake = open_lake(load_settings(file, {}), home)
    ids = Counter(lake.table("events").scan(selected_fields=("event_id",)).to_arrow()["event_id"].to_pylist())
    wanted = {f"e{number}" for number in ledger.acknowledged}
    report.lake_rows = ids.total()
    report.lost_in_lake = len(wanted - ids.keys())
    report.strange_in_lake = len(ids.keys() - wanted)
    report.doubled_in_lake = sum(count - 1 for count in ids.values())


def _compare_state(run: Run, ledger: Ledger, report: Report) -> None:
    wanted: dict[str, list[str]] = {}
    for number in sorted(ledger.acknowledged):
        event = ledger.event(number)
        wanted.setdefault(event["user_id"], []).append(event["event_time"][:19])
    deadline = time.monotonic() + SETTLE_S
    for user, times in wanted.items():
        while (found := _history(run, user)) != times:
            if time.monotonic() > deadline:
                shown = "no answer" if found is None else f"{len(found)} entries"
                report.wrong_histories.append(f"{user}: found {shown}, wanted {len(times)}")
                break
            time.sleep(0.2)


def _history(run: Run, user: str) -> list[str] | None:
    connection = http.client.HTTPConnection(run.endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", f"/v1/users/{user}/history")
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return [one["event_time"][:19] for one in json.loads(text)["items"]] if response.status == 200 else None
