"""A system to measure: MovieLens learned by one configuration a family, 100,000 users with histories, endpoint up."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from app.errors import MantaError
from app.settings import Settings, load_settings
from deployments import cluster
from deployments.status import status
from scripts import apache_kafka
from scripts.movielens import keyed, load_ratings
from scripts.replay import Client
from scripts.show import say
from scripts.system import launch
from tests.bench.load import free_port

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
USERS = 100_000
EVENTS_PER_USER = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """A system that is up, caught up and answering."""

    settings: Settings
    home: Path
    port: int
    bundle: Path

    def pids(self, *roles: str) -> list[int]:
        """Processes of these roles now."""
        found = status(self.home, [], self.settings)["processes"]
        return [int(process["pid"]) for process in found if process["role"] in roles]

    def client(self) -> Client:
        return Client("127.0.0.1", self.port)


@contextmanager
def measured_system(**environ: str) -> Iterator[Measured]:
    """`environ`: settings as MANTA_SECTION__KEY. The answer cache is off; `away` is `home` in stages of its own."""
    with tempfile.TemporaryDirectory(prefix="mb-") as folder, kafka(Path(folder)) as address:
        os.environ["MANTA_HOME"] = folder
        home, port = Path(folder), free_port()
        asked = {
            "MANTA_HTTP__PORT": str(port),
            "MANTA_KAFKA__BOOTSTRAP_SERVERS": address,
            "MANTA_CACHE__ANSWERS": "false",
            "MANTA_SURFACES__AWAY": "{topology: distributed, timeout_ms: 1000}",
            "MANTA_SURFACES__HOME__TIMEOUT_MS": "1000",
            **environ,
        }
        settings = load_settings(ROOT / "manta.yaml", asked)
        with cluster.attach(settings, home, ends=True, say=say) as attached:
            assert attached.run is not None
            bundle = _learn(attached.settings, home)
            _populate(attached.settings)
            launch(attached.settings, attached.run)
            _promote(port, bundle)
            caught_up(home, attached.settings)
            cluster.mark_up(attached.run, stays=False)
            yield Measured(attached.settings, home, port, home / "bundles" / bundle)


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """An Apache Kafka of its own: an idle consumer of the embedded broker is never idle."""
    if missing := apache_kafka.missing_tools():
        raise MantaError(f"bench: Apache Kafka needs {' and '.join(missing)}: install them and run this again")
    try:
        yield apache_kafka.start(folder / "broker")
    finally:
        apache_kafka.end(folder / "broker", signal.SIGKILL)


def _learn(settings: Settings, home: Path) -> str:
    from app.events.producer import EventProducer
    from app.events.schema import EVENTS, ITEMS
    from app.events.topics import ensure_topics
    from tune.ingest import run_ingest
    from tune.sweep import run_sweep

    ratings = load_ratings()
    past, _ = ratings.split()
    ensure_topics(settings.kafka)
    producer = EventProducer(settings.kafka, delivery_timeout_s=30, linger_ms=20)
    try:
        producer.send_blocking(ITEMS, keyed(ratings.items, "item_id"))
        producer.send_blocking(EVENTS, keyed(past, "user_id"))
    finally:
        producer.close()
    say("ingest and fit")
    run_ingest(settings, home)
    report = run_sweep(settings, home, HERE / "serve.yaml")
    if report.bundle is None:
        raise MantaError("bench: the sweep registered no bundle")
    return report.bundle


def _populate(settings: Settings) -> None:
    """Histories of the benchmark's users: items drawn Zipf(1.0), times after MovieLens' own."""
    from app.events.producer import EventProducer
    from app.events.schema import EVENTS

    items = [item["item_id"] for item in load_ratings().items]
    rng = np.random.default_rng(0)
    weights = np.cumsum(1 / np.arange(1, len(items) + 1))
    drawn = np.searchsorted(weights, rng.random(USERS * EVENTS_PER_USER) * weights[-1])
    say(f"{len(drawn)} events of {USERS} users")
    producer = EventProducer(settings.kafka, delivery_timeout_s=60, linger_ms=20)
    try:
        producer.send_blocking(EVENTS, (_event(n, items[row]) for n, row in enumerate(drawn.tolist())))
    finally:
        producer.close()


def _event(number: int, item: str) -> tuple[bytes, bytes]:
    user = f"u{number // EVENTS_PER_USER + 1}"
    body = {
        "schema_version": 1,
        "event_id": f"b{number}",
        "user_id": user,
        "item_id": item,
        "event_type": "rating",
        "event_time": f"2016-11-01T00:00:{number % 60:02d}Z",
    }
    return user.encode(), orjson.dumps(body)


def _promote(port: int, bundle: str) -> None:
    client = Client("127.0.0.1", port)
    code, answer = client.call("POST", f"/v1/bundles/{bundle}/promote", {"force": True})
    if code != 202:
        raise MantaError(f"bench: promotion answered {code}: {answer}")
    end = time.monotonic() + 120
    while client.call("GET", "/readyz")[0] != 200:
        if time.monotonic() > end:
            raise MantaError("bench: the endpoint did not become ready within 120 s")
        time.sleep(0.2)


def caught_up(home: Path, settings: Settings) -> None:
    """Waits until the state has applied everything.

    Raises:
        MantaError: it has not within five minutes.
    """
    end = time.monotonic() + 300
    while status(home, [], settings)["lag"].get("state_messages") != 0:
        if time.monotonic() > end:
            raise MantaError("bench: the state writer did not catch up within 300 s")
        time.sleep(0.5)
