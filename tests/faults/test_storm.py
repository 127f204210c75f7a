"""Partitions are added, readers and broker killed, writers' clocks are wrong, all at once: each event counts once."""

import logging
import random
import signal
import threading
from collections import Counter
from itertools import count
from pathlib import Path
from time import sleep, time

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from app.events.dead_letters import read_dead_letters
from app.events.schema import EVENTS, format_time
from app.events.topics import administration, bounds, ensure_topics
from app.lake.snapshot import snapshot
from app.state.history import entries_of
from app.state.layout import StatePaths, database
from app.state.memory import fold_everything
from app.state.messages import to_batch
from app.state.position import shown_offsets
from scripts import apache_kafka
from tests.faults.state_child import settings_for
from tests.faults.test_state_writer import Child, until, whole_log
from tests.faults.world import World
from tests.property.test_state import DAY, stored

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

MINUTE_MS = 60_000
EVENTS_A_ROUND = 300  # of 40 users: less each than a history keeps
QUIET = logging.getLogger("tests.storm")
# How far a writer's clock is off, and the event's own time from that; None: it has none.
CLOCKS: list[tuple[int, int | None]] = [
    (0, None),
    (0, -50 * 365 * 24 * 60 * MINUTE_MS),
    (40 * MINUTE_MS, None),  # brokers take up to an hour
    (-3 * 24 * 60 * MINUTE_MS, 0),
    (-5 * 24 * 60 * MINUTE_MS, 9 * MINUTE_MS),
    (0, 11 * MINUTE_MS),  # ten are allowed: refused
]


class Writer:
    """Sends as many as it may until it is told to stop, each user's to one partition at a time, some of it twice.

    Attributes:
        accepted: numbers of the events that must count.
        refused: how many messages must be dead letters.
        partitions: that the users are spread over.
        upto: numbers below it may be sent.
    """

    def __init__(self, address: str) -> None:
        self.accepted: set[int] = set()
        self.refused = self.sent = 0
        self.partitions, self.upto = 2, 0
        quick = {"topic.metadata.refresh.interval.ms": 200}  # until then a new partition is unknown here
        self._producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, **quick}, logger=QUIET)
        self._failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        draw = random.Random(3)
        for number in count():
            while self._stop.wait(0.002) or number >= self.upto:
                if self._stop.is_set():
                    return
            (skew, own), now = draw.choice(CLOCKS), int(time() * 1000)
            event = {"user_id": f"u{number % 40}", "event_id": f"e{number}", "event_type": "click"}
            event["item_id"] = str(number)
            if own is not None:
                event["event_time"] = format_time((now + skew + own) * 1000)
            late, partitions = own is not None and own > 10 * MINUTE_MS, self.partitions
            for _ in range(draw.choice((1, 1, 1, 2))):
                self._produce(event, number % 40 % partitions, now + skew)
                self.refused += late
            if not late:
                self.accepted.add(number)
            self.sent = number + 1
            self._producer.poll(0)

    def _produce(self, event: dict[str, str], partition: int, timestamp: int) -> None:
        place = (EVENTS, orjson.dumps(event), event["user_id"].encode(), partition)
        while True:
            try:
                self._producer.produce(*place, timestamp=timestamp, on_delivery=self._delivered)
                return
            except KafkaException as error:
                if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise
                self._producer.poll(0.05)

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._failed.append(str(error))

    def finish(self) -> None:
        """Returns once all that it may send has been acknowledged."""
        until(lambda: self.sent >= self.upto or not self._thread.is_alive())
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0
        assert not self._failed, self._failed[:3]


def test_a_storm_of_partitions_restarts_and_wrong_clocks(own_kafka: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = own_kafka
    world = World.of(address, tmp_path, kafka={"partitions": 2})
    settings = settings_for(address)
    ensure_topics(settings.kafka)
    child, writer = Child(tmp_path, address), Writer(address)
    try:
        for partitions, point in ((5, "read"), (9, "written")):
            writer.upto += EVENTS_A_ROUND
            ingest = world.ingest(f"ingest:{point}")
            with administration(settings.kafka) as admin:
                admin.create_partitions({EVENTS: partitions})
            until(lambda wanted=partitions: len(bounds(settings.kafka, [EVENTS])[EVENTS].end) == wanted)  # type: ignore[misc]
            writer.partitions = partitions
            child.end(signal.SIGKILL)
            child.start()
            if point == "written":
                apache_kafka.end(folder, signal.SIGKILL)
                sleep(0.5)
                apache_kafka.start(folder)
            ingest.communicate(timeout=180)
        writer.upto += EVENTS_A_ROUND
        writer.finish()
        held = bounds(settings.kafka, [EVENTS])[EVENTS]
        position = StatePaths.of(tmp_path).position
        until(lambda: shown_offsets(position).get(EVENTS) == {p: end for p, end in held.end.items() if end})
    finally:
        writer.finish()
        child.end(signal.SIGTERM)
    assert writer.sent == 3 * EVENTS_A_ROUND
    world.ingest_here()
    now = snapshot(world.lake, EVENTS)
    found = Counter(map(int, now.read(["item_id"])["item_id"].to_pylist()))
    assert found == Counter(writer.accepted)
    assert now.progress.topics[EVENTS].next == held.end
    letters = [(one["partition"], one["offset"], one["reason"]) for one in read_dead_letters(settings.kafka)]
    assert len(letters) == len(set(letters)) == writer.refused > 0
    assert {reason for _, _, reason in letters} == {"future"}
    histories = stored(database(StatePaths.of(tmp_path).databases, 0))
    events = to_batch(whole_log(settings), settings.events).events
    assert histories == fold_everything(events, settings.state.max_history, int(settings.events.dedup_days * DAY))
    kept = [entry.item_id for record in histories.values() for entry in entries_of(record)]
    assert Counter(map(int, kept)) == Counter(writer.accepted)
