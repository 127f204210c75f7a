"""Ingest killed at six points, two at once, holes in the log: the lake has every event exactly once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer
from kafka import TopicPartition

from app.errors import GapError
from app.events.dead_letters import dlq_messages, list_dead_letters
from app.events.producer import EventProducer
from app.events.schema import DLQ, EVENTS, ITEMS
from app.events.topics import administration, bounds, ensure_topics
from app.lake.identities import IDENTITIES
from app.lake.ingest import IngestReport
from app.lake.snapshot import snapshot
from deployments.cluster import attach
from scripts import apache_kafka
from tests.faults.world import World, finished
from tune.ingest import run_ingest

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

POINTS = ("planned", "read", "dead_letters", "written", "committed", "remembering")


@pytest.fixture(scope="module")
def world(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory, short_home: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kafka")
    made = World.of(apache_kafka.start(folder), short_home)
    ensure_topics(made.settings.kafka)
    yield made
    apache_kafka.end(folder, signal.SIGKILL)


def test_killed_anywhere_and_run_again_every_event_is_there_once(world: World) -> None:
    world.produce(1000, seed=0)
    for place, point in enumerate(POINTS):
        process = world.ingest(f"ingest:{point}")
        process.communicate(timeout=180)
        assert process.returncode == -signal.SIGKILL, f"{point} was not reached"
        world.produce(100, seed=place + 1)
        world.repeat(50, seed=place)
    shutil.rmtree(world.home / IDENTITIES)
    world.repeat(50, seed=9)
    world.ingest_here()
    world.check()
    kafka = world.settings.kafka
    written = [key for key, _ in dlq_messages(kafka, bounds(kafka, [DLQ])[DLQ])]
    assert len(written) == world.bad, "what stood in the topic was written again"


def test_of_two_ingests_at_once_one_wins_each_commit_and_nothing_doubles(world: World) -> None:
    world.produce(1500, seed=10)
    reports = [finished(process) for process in [world.ingest(), world.ingest()]]
    assert sum(report["rows"].get(EVENTS, 0) for report in reports) == 1500
    world.check()


@pytest.mark.cluster
def test_by_ray_tasks_killed_and_run_again_and_followed(world: World) -> None:
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
        followed(world, [*command[:-1], "--follow", "--json"], os.environ | home)
    world.check()


def followed(world: World, command: list[str], environment: dict[str, str]) -> None:
    """Follows through two bursts, and ends well on SIGTERM."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows = snapshot(world.lake, EVENTS).rows
    for burst in (1, 2):
        world.produce(100, seed=20 + burst)
        deadline = time.monotonic() + 120
        while snapshot(world.lake, EVENTS).rows < rows + 100 * burst:
            assert process.poll() is None
            assert time.monotonic() < deadline, "what came was not committed"
            time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"][EVENTS] == 200


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
