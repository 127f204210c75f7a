"""Dead letters on Apache Kafka: sent back once their cause is mended; a flood of them stops nothing, fills nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.events.blocks import read_here
from app.events.dead_letters import list_dead_letters, position_in
from app.events.producer import EventProducer
from app.events.replay import Choice, replay_dead_letters
from app.events.schema import EVENTS, ITEMS
from app.events.topics import bounds, ensure_topics
from app.lake.ingest import IngestJob, IngestReport
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.settings import Settings
from app.state.replica import StateReplica
from app.state.writer import StateWriterLoop
from scripts import apache_kafka
from tests.faults.erasing import erase_on_broker, later_by_days
from tests.faults.test_state_writer import items_of, until

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

STRICT = {"max_future_s": 600.0}
MENDED = {"max_future_s": 4e9}
LATER = "2090-01-01T00:00:00Z"  # from the future, unless the settings allow it
DAY = "2020-01-01T00:00:00Z"


@dataclass
class World:
    """A broker and a lake, ingested under one of two rules."""

    address: str
    home: Path

    def settings(self, events: dict[str, Any] = STRICT) -> Settings:
        values = {"kafka": {"bootstrap_servers": self.address, "partitions": 2}, "events": events}
        (self.home / "manta.yaml").write_text(json.dumps(values))
        return Settings.model_validate(values)

    def send(self, topic: str, *messages: tuple[str, Any]) -> None:
        producer = EventProducer(self.settings().kafka, delivery_timeout_s=30)
        encoded = [(key.encode(), body if isinstance(body, bytes) else orjson.dumps(body)) for key, body in messages]
        producer.send_blocking(topic, encoded)
        producer.close()

    def ingest(self, settings: Settings) -> IngestReport:
        job = IngestJob(settings, open_lake(settings, self.home), read_here)
        try:
            job.take_all()
        finally:
            job.close()
        return job.report

    def rows(self, topic: str) -> list[dict[str, Any]]:
        settings = self.settings()
        return [dict(row) for row in snapshot(open_lake(settings, self.home), topic).read().to_pylist()]

    def replay(self, *words: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
        """`manta dlq replay` under the mended rules, as a process of its own."""
        self.settings(MENDED)
        own = {"MANTA_HOME": str(self.home), "MANTA_SETTINGS": str(self.home / "manta.yaml")}
        command = [sys.executable, "-m", "scripts.cli", "dlq", "replay", "--json", *words]
        env = os.environ | own | ({"MANTA_FAULT": fault} if fault else {})
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    def history(self, home: Path, settings: Settings) -> set[str]:
        """The items in user a's history once a writer of these rules has applied everything."""
        loop = StateWriterLoop(settings, home)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            ends = bounds(settings.kafka, [EVENTS])[EVENTS].end
            until(lambda: all(loop.status()["offsets"].get(EVENTS, {}).get(part, 0) >= ends[part] for part in ends))
            replica = StateReplica.of_home(home, "test")
            items = items_of(replica, "a")
            replica.close()
        finally:
            loop.stop()
            thread.join()
        assert len(items) == len(set(items))
        return set(items)


@pytest.fixture(scope="module")
def broker(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("kafka")
    yield apache_kafka.start(folder)
    apache_kafka.end(folder, signal.SIGKILL)


@pytest.fixture
def world(broker: str, tmp_path: Path) -> World:
    world = World(broker, tmp_path)
    ensure_topics(world.settings().kafka)
    return world


def event(user: str, item: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return user, {"user_id": user, "item_id": item, "event_type": "click", **more}


def test_what_is_sent_back_counts_once_in_lake_and_state_however_often(world: World) -> None:
    world.send(EVENTS, event("a", "named", event_id="x", event_time=LATER), event("a", "nameless", event_time=LATER))
    world.send(EVENTS, event("a", "good", event_id="y", event_time=DAY), ("a", b"rubbish"))
    world.send(ITEMS, ("1", {"year": [1, "b"]}), ("1", {"year": 2}))
    strict = world.settings()
    assert world.ingest(strict).dead_letters == {"future": 2, "json": 1, "type": 1}
    assert world.history(world.home, strict) == {"good"}
    letters = list_dead_letters(strict.kafka)
    assert (letters["total"], letters["replayed"]) == (4, 0)
    places = [position_in(letter) for letter in letters["messages"]]
    nameless = next(place for place in places if (place.topic, place.offset) == (EVENTS, 1))

    ends = bounds(strict.kafka, [EVENTS])
    mended = world.settings(MENDED)
    looked = replay_dead_letters(mended, Choice(reasons=frozenset({"future"})), dry_run=True)
    assert (looked.chosen, looked.replayed) == (2, 2)
    assert bounds(strict.kafka, [EVENTS]) == ends

    killed = world.replay(fault="replay:sent")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    report = json.loads(world.replay().stdout)
    assert (report["chosen"], report["replayed"], report["superseded"], report["refused"]) == (4, 2, 1, {"json": 1})
    again = replay_dead_letters(mended, Choice(frozenset({nameless})))
    assert (again.chosen, again.replayed, again.already) == (1, 0, 1)

    assert world.ingest(mended).duplicates == 2
    found = {(row["event_id"], row["item_id"]) for row in world.rows(EVENTS)}
    assert found == {(str(nameless), "nameless"), ("x", "named"), ("y", "good")}
    assert len(world.rows(EVENTS)) == 3
    assert [(row["item_id"], row["columns"]) for row in world.rows(ITEMS)] == [("1", '{"year":2}')]
    assert world.history(world.home, mended) == {"good", "named", "nameless"}
    # Whoever reads the whole log under the mended rules meets the original too: it is the same event
    assert world.history(world.home / "anew", mended) == {"good", "named", "nameless"}
    left = list_dead_letters(mended.kafka)
    assert (left["total"], left["by_reason"], left["replayed"]) == (2, {"json": 1, "type": 1}, 2)


def test_a_position_without_a_dead_letter_is_named(world: World) -> None:
    missing = world.replay("events/0/999999")
    assert (missing.returncode, "no dead letter of events/0/999999" in missing.stderr) == (1, True)


def test_what_an_erasure_tells_of_the_broker_and_deletes_where_it_may(world: World) -> None:
    without, deleted = erase_on_broker(world.settings(), world.home)
    week = pytest.approx(14, abs=0.1)  # a segment takes messages for a week, and is kept for a week
    assert [later_by_days(without[place]) for place in ("kafka: events", "dead letters")] == [week, week]
    assert without["kafka: impressions"].cleared
    assert later_by_days(without["kafka: users"]) == pytest.approx(29, abs=0.1)
    assert all(deleted[place].cleared for place in ("kafka: events", "kafka: impressions", "dead letters"))
    assert not deleted["kafka: users"].cleared, "of a compacted topic nothing can be deleted"


def test_a_flood_of_rubbish_neither_stops_the_good_ones_nor_fills_memory(world: World) -> None:
    """200,000 messages of 1,000 bytes that nobody can read, with 100 good events between them, in one commit."""
    before = list_dead_letters(world.settings().kafka, 0)["by_reason"].get("json", 0)
    good = [event("a", f"flood{place}", event_id=f"flood{place}") for place in range(100)]
    rubbish = [("a", b"x" * 1000)] * 2000
    world.send(EVENTS, *(message for one in good for message in [*rubbish, one]))
    command = [sys.executable, "-m", "tests.faults.ingest_child", str(world.home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    report = json.loads(done.stdout)
    assert report["dead_letters"]["json"] >= 200_000, "with those of the tests before that are in the log still"
    assert list_dead_letters(world.settings().kafka, 0)["by_reason"]["json"] == before + 200_000
    assert {f"flood{place}" for place in range(100)} <= {row["event_id"] for row in world.rows(EVENTS)}
    assert report["grown_bytes"] < 450_000_000, f"memory grew by {report['grown_bytes']:,} bytes"
