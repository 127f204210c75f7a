"""Sending to an Apache Kafka that stands still, and to one that asks for TLS and a password."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from app.api.application import create_edge
from app.api.service import Json
from app.events.blocks import read_here
from app.events.connection import consumer_config
from app.events.producer import EventProducer
from app.events.schema import EVENTS
from app.events.topics import bounds, ensure_topics
from app.lake.ingest import IngestJob
from app.lake.tables import open_lake
from app.settings import KafkaSettings, Settings
from app.state.feed import StateFeed
from app.state.memory import MemoryState
from deployments.freshness import Follower
from deployments.positions import Positions
from deployments.writes import Writes
from scripts import apache_kafka
from tests.faults import guarded_kafka
from tests.faults.guarded_kafka import PASSWORD, USER, GuardedKafka
from tests.unit.fake_service import FakeService
from tests.unit.test_gateway_parts import Applying, Counting, nobody

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

LOGIN = {"sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": PASSWORD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def broker(kafka_jars: None, folder: Path) -> Iterator[GuardedKafka]:
    started = guarded_kafka.start(folder)
    ensure_topics(KafkaSettings(bootstrap_servers=started.plain, partitions=1))
    yield started
    apache_kafka.end(folder / "kafka", signal.SIGKILL)


class Gateway(FakeService):
    """The part of a gateway that takes events, over a real producer."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.producer = EventProducer(settings.kafka)
        state, metrics = MemoryState(settings), Counting()
        follower = Follower(state, timeout_s=1.0, moved=lambda: None)
        positions = Positions(Applying(), nobody)
        self._writes = Writes(
            settings, state, follower, self.producer, positions, metrics,  # type: ignore[arg-type]
            lambda _: None, dict,
        )  # fmt: skip

    async def post_events(self, events: Sequence[Any], wait: bool) -> Json:
        return await self._writes.post_events(events, wait)


async def test_a_broker_that_stands_still_gives_503_at_once_and_never_a_202_for_what_may_be_lost(
    broker: GuardedKafka, folder: Path
) -> None:
    kafka = {"bootstrap_servers": broker.plain, "max_in_flight_events": 2000, "delivery_timeout_s": 4.0}
    gateway = Gateway(Settings.model_validate({"kafka": kafka}))
    acknowledged: set[str] = set()
    refusals: list[tuple[float, str]] = []
    pauses: list[float] = []
    transport = httpx.ASGITransport(create_edge(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://manta") as client:

        async def post(count: int = 100) -> int:
            names = [uuid.uuid4().hex for _ in range(count)]
            events = [{"event_id": n, "user_id": n, "item_id": "1", "event_type": "click"} for n in names]
            started = time.monotonic()
            answer = await client.post("/v1/events", json=events)
            if answer.status_code == 202:
                assert answer.json()["accepted"] == count
                acknowledged.update(names)
            else:
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) >= 1
                refusals.append((time.monotonic() - started, answer.json()["detail"]))
            return answer.status_code

        async def watch() -> None:
            while True:
                started = time.monotonic()
                assert (await client.get("/healthz")).status_code == 200
                pauses.append(time.monotonic() - started)
                await asyncio.sleep(0.01)

        assert await post() == 202
        pid = apache_kafka.alive(folder / "kafka")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        watching = asyncio.create_task(watch())
        try:
            found = await asyncio.gather(*(post() for _ in range(40)))  # twice what may wait
            assert set(found) == {503}
            held = gateway.producer.in_flight
        finally:
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 30
        while await post() != 202:
            assert time.monotonic() < deadline, "the broker goes on, the producer does not"
            await asyncio.sleep(0.1)
        watching.cancel()
    gateway.producer.close()
    at_once = [seconds for seconds, detail in refusals if "wanted at most 2000" in detail]
    assert len(at_once) >= 20
    assert held <= 2000
    pauses.sort()
    assert pauses[int(len(pauses) * 0.95)] < 0.05, f"/healthz took {pauses[-5:]}"
    assert pauses[-1] < 2.0, f"the event loop stood still for {pauses[-1]:.2f} s"
    assert acknowledged <= keys(broker)


async def test_what_waits_behind_a_slow_broker_costs_nothing(broker: GuardedKafka, folder: Path) -> None:
    producer = EventProducer(KafkaSettings(bootstrap_servers=broker.plain, delivery_timeout_s=20))
    records = [(b"slow", b"{}")] * 100
    await producer.send(EVENTS, records)
    pid = apache_kafka.alive(folder / "kafka")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        sent = [asyncio.create_task(producer.send(EVENTS, records))]
        await asyncio.sleep(0.1)
        used = time.process_time()
        sent += [asyncio.create_task(producer.send(EVENTS, records)) for _ in range(10)]
        await asyncio.sleep(0.6)
        used = time.process_time() - used
    finally:
        os.kill(pid, signal.SIGCONT)
    offsets = [found[0] for found in await asyncio.gather(*sent)]
    assert offsets == sorted(set(offsets))
    assert producer.in_flight == 0
    producer.close()
    assert used < 0.2, f"{used:.2f} s of computing in 0.6 s of waiting"


def keys(broker: GuardedKafka) -> set[str]:
    """The keys of all messages that stand in `events`."""
    settings = KafkaSettings(bootstrap_servers=broker.plain)
    end = bounds(settings, [EVENTS])[EVENTS].end[0]
    consumer = Consumer(consumer_config(settings))
    consumer.assign([TopicPartition(EVENTS, 0, 0)])
    found: set[str] = set()
    offset = -1
    while offset < end - 1:
        for message in consumer.consume(1000, 0.2):
            offset = message.offset()
            found.add(message.key().decode())
    consumer.close()
    return found


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SSL", "sasl_ssl"])
def test_every_client_of_kafka_speaks_tls_and_sasl(protocol: str, broker: GuardedKafka, tmp_path: Path) -> None:
    address = {"SASL_PLAINTEXT": broker.sasl, "SSL": broker.tls, "sasl_ssl": broker.both}[protocol]
    client = {"security.protocol": protocol}
    client |= LOGIN if "sasl" in protocol.lower() else {}
    client |= {"ssl.ca.location": str(broker.certificate)} if "ssl" in protocol.lower() else {}
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": address, "client": client}})
    assert ensure_topics(settings.kafka) == []
    name = uuid.uuid4().hex
    producer = EventProducer(settings.kafka, delivery_timeout_s=20)
    event = {"event_id": name, "user_id": "guarded", "item_id": "1", "event_type": "click"}
    producer.send_blocking(EVENTS, [(b"guarded", json.dumps(event).encode())])
    producer.close()
    end = bounds(settings.kafka, [EVENTS])[EVENTS].end[0]

    job = IngestJob(settings, open_lake(settings, tmp_path), read_here)
    job.take(EVENTS)
    job.close()
    assert job.report.offsets[EVENTS] == {0: end}

    feed = StateFeed(settings.kafka, {EVENTS: {0: end - 1}}, {})
    deadline = time.monotonic() + 20
    while not (read := feed.poll(0.2, 10)):
        assert time.monotonic() < deadline, feed.error
    feed.close()
    assert [message.key() for message in read.messages] == [b"guarded"]


@pytest.mark.parametrize("words", [("dlq", "list"), ("ingest",)], ids=" ".join)
def test_a_wrong_password_is_one_clear_line(words: tuple[str, ...], broker: GuardedKafka, tmp_path: Path) -> None:
    client = {"security.protocol": "SASL_PLAINTEXT", **LOGIN, "sasl.password": "wrong"}
    (tmp_path / "manta.yaml").write_text(json.dumps({"kafka": {"bootstrap_servers": broker.sasl, "client": client}}))
    own = {"MANTA_HOME": str(tmp_path), "MANTA_SETTINGS": str(tmp_path / "manta.yaml")}
    command = [sys.executable, "-m", "scripts.cli", *words]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"Kafka at {broker.sasl} turns this client away" in line
    assert "Invalid username or password" in line


def test_a_wrong_password_reaches_whoever_sends(broker: GuardedKafka) -> None:
    client = {"security.protocol": "SASL_PLAINTEXT", **LOGIN, "sasl.password": "wrong"}
    settings = KafkaSettings(bootstrap_servers=broker.sasl, client=client, delivery_timeout_s=2.0)
    producer = EventProducer(settings)
    with pytest.raises(Exception, match="Invalid username or password"):
        asyncio.run(producer.send(EVENTS, [(b"k", b"v")]))
    with pytest.raises(Exception, match="Invalid username or password"):
        bounds(settings, [EVENTS])
    producer.close(0.1)
