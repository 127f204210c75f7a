"""Ingest killed at five points, two at once, holes in the log: the lake has every event exactly once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from kafka import TopicPartition

from app.errors import GapError
from app.events.blocks import read_here
from app.events.dead_letters import list_dead_letters, read_dead_letters
from app.events.producer import EventProducer
from app.events.schema import DLQ, EVENTS, ITEMS
from app.events.topics import administration, bounds, ensure_topics
from app.lake.ingest import IngestJob, IngestReport
from app.lake.snapshot import snapshot
from app.lake.tables import Lake, open_lake
from app.settings import Settings
from deployments.cluster import attach
from scripts import apache_kafka
from tune.ingest import run_ingest

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

POINTS = ("planned", "read", "dead_letters", "written", "committed")


@dataclass
class World:
    """A broker, a Ray, a lake, and what was acknowledged."""

    settings: Settings
    home: Path
    ledger: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    _made: int = 0

    @property
    def lake(self) -> Lake:
        return open_lake(self.settings, self.home)

    def produce(self, count: int, seed: int) -> None:
        """`count` events, some twice, some rubbish between them."""
        rnd = random.Random(seed)
        messages: list[tuple[bytes, bytes]] = []
        for _ in range(count):
            self._made += 1
            user, name = f"u{rnd.randrange(50)}", f"e{self._made}"
            event = {"user_id": user, "event_id": name, "item_id": "i", "event_type": "click"}
            event["event_time"] = f"20{rnd.randrange(10, 24)}-01-01T00:00:00Z"
            copies = 2 if rnd.random() < 0.1 else 1
            messages += [(user.encode(), orjson.dumps(event))] * copies
            self.ledger[name] += 1
            if rnd.random() < 0.05:
                messages.append((user.encode(), b"rubbish"))
                self.bad += 1
        producer = EventProducer(self.settings.kafka, delivery_timeout_s=30)
        producer.send_blocking(EVENTS, messages)
        producer.close()

    def ingest(self, fault: str = "") -> subprocess.Popen[str]:
        """An ingest as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ingest_child", str(self.home)],
            env=os.environ | ({"MANTA_FAULT": fault} if fault else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ingest_here(self, *, accept_gap: bool = False) -> IngestReport:
        """An ingest in this process."""
        job = IngestJob(self.settings, self.lake, read_here, accept_gap=accept_gap)
        try:
            job.take_all()
        finally:
            job.close()
        return job.report

    def check(self) -> None:
        """Every event once, every bad message once, offsets at the log's end."""
        now = snapshot(self.lake, EVENTS)
        found = Counter(now.read(["event_id"])["event_id"].to_pylist())
        assert found == self.ledger
        assert now.progress.topics[EVENTS].next == bounds(self.settings.kafka, [EVENTS])[EVENTS].end
        letters = [(one["topic"], one["partition"], one["offset"]) for one in read_dead_letters(self.settings.kafka)]
        assert len(letters) == len(set(letters)) == self.bad


@pytest.fixture(scope="module")
def world(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory, short_home: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kafka")
    values = {
        "kafka": {"bootstrap_servers": apache_kafka.start(folder), "partitions": 3},
        "lake": {"partition": "month", "max_open_partitions": 5},
        "ingest": {"chunk_rows": 400, "task_rows": 200},
        "ray": {"num_cpus": 2},
    }
    (short_home / "manta.yaml").write_text(json.dumps(values))
    settings = Settings.model_validate(values)
    ensure_topics(settings.kafka)
    yield World(settings, short_home)
    apache_kafka.end(folder, signal.SIGKILL)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_killed_at_five_points_and_run_again_every_event_is_there_once(world: World) -> None:
    world.produce(1000, seed=0)
    for place, point in enumerate(POINTS):
        process = world.ingest(f"ingest:{point}")
        process.communicate(timeout=180)
        assert process.returncode == -signal.SIGKILL, f"{point} was not reached"
        world.produce(100, seed=place + 1)
    world.ingest_here()
    world.check()


def test_of_two_ingests_at_once_one_wins_each_commit_and_nothing_doubles(world: World) -> None:
    world.produce(1500, seed=10)
    reports = [finished(process) for process in [world.ingest(), world.ingest()]]
    assert sum(report["rows"].get(EVENTS, 0) for report in reports) == 1500
    world.check()


@pytest.mark.cluster
def test_as_a_ray_data_job_killed_and_run_again(world: World) -> None:
    world.produce(1000, seed=11)
    with attach(world.settings, world.home, ends=True, say=print) as attached:
        command = [sys.executable, "-m", "scripts.cli", "ingest", "--json"]
        home = {"MANTA_HOME": str(world.home), "MANTA_SETTINGS": str(world.home / "manta.yaml")}
        killed = subprocess.run(
            command, env=os.environ | home | {"MANTA_FAULT": "ingest:written"}, capture_output=True, timeout=240
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        report = run_ingest(attached.settings, world.home)
    assert report.rows[EVENTS] == 1000
    world.check()


def test_markers_of_transactions_and_an_aborted_one_are_passed(world: World) -> None:
    producer = Producer({"bootstrap.servers": world.settings.kafka.bootstrap_servers, "transactional.id": "t"})
    producer.init_transactions(30)
    for committed in (True, False, True):
        producer.begin_transaction()
        for number in range(20):
            name = f"t{committed}{time.time_ns()}{number}"
            event = {"session_id": "s", "event_id": name, "item_id": "i", "event_type": "click"}
            producer.produce(EVENTS, orjson.dumps(event), b"s")
            if committed:
                world.ledger[name] += 1
        if committed:
            producer.commit_transaction(30)
        else:
            producer.flush(10)
            producer.abort_transaction(30)
    world.ingest_here()
    world.check()


def test_items_hold_the_latest_version(world: World) -> None:
    producer = EventProducer(world.settings.kafka, delivery_timeout_s=30)
    versions = [(b"1", b'{"year":1}'), (b"2", b'{"year":1}'), (b"1", b'{"year":2}'), (b"2", None), (b"3", b"rubbish")]
    producer.send_blocking(ITEMS, versions)
    producer.close()
    report = world.ingest_here()
    world.bad += 1
    assert report.dead_letters == {"json": 1}
    rows = {row["item_id"]: row for row in snapshot(world.lake, ITEMS).read().to_pylist()}
    assert {name: (row["available"], row["columns"]) for name, row in rows.items()} == {
        "1": (True, '{"year":2}'),
        "2": (False, '{"year":1}'),
    }
    assert list_dead_letters(world.settings.kafka, 1)["total"] == world.bad


def test_what_retention_has_deleted_stops_the_ingest_unless_the_gap_is_accepted(world: World) -> None:
    world.produce(300, seed=20)
    before = snapshot(world.lake, EVENTS)
    held = bounds(world.settings.kafka, [EVENTS])[EVENTS]
    with administration(world.settings.kafka) as admin:
        admin.delete_records({TopicPartition(EVENTS, 0): held.end[0]})
    with pytest.raises(GapError, match=r"topic events, partition 0: offset \d+ should be read next") as caught:
        world.ingest_here()
    assert (caught.value.first, caught.value.wanted) == (held.end[0], before.progress.topics[EVENTS].next[0])
    assert snapshot(world.lake, EVENTS).id == before.id
    report = world.ingest_here(accept_gap=True)
    (gap,) = report.gaps
    assert (gap["from"], gap["to"]) == (before.progress.topics[EVENTS].next[0], held.end[0])
    assert snapshot(world.lake, EVENTS).progress.gaps[-1] == gap


def test_a_topic_made_anew_is_named(world: World) -> None:
    with administration(world.settings.kafka) as admin:
        admin.delete_topics([EVENTS, DLQ])
    time.sleep(1)
    ensure_topics(world.settings.kafka)
    with pytest.raises(GapError, match="made anew"):
        world.ingest_here()
    rows = snapshot(world.lake, EVENTS).rows
    world.produce(100, seed=30)
    report: IngestReport = world.ingest_here(accept_gap=True)
    assert report.rows[EVENTS] == 100
    assert snapshot(world.lake, EVENTS).rows == rows + 100
