"""The live figures on Apache Kafka: killed at random, they equal the batch computation over the same topics."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from app.errors import StateUnavailable
from app.events.connection import consumer_config
from app.events.producer import EventProducer
from app.events.schema import EVENTS, IMPRESSIONS, format_time
from app.events.topics import bounds, ensure_topics
from app.events.windows import tumbling
from app.settings import Settings
from app.state.feed import Read
from app.stats.batch import TOPICS, StatsBatch, to_batch
from app.stats.counters import HOUR_US, KEYS, SUMS, read_figure
from app.stats.fold import StatsFold
from app.stats.from_lake import fold_tables
from app.stats.held import DAYS, HOURS, ITEM_HOURS, ITEMS, MemoryHeld
from app.stats.reader import StatsReader
from app.stats.store import RocksHeld, StatsPaths
from tests.faults.stats_child import settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.faults]
SECOND = 1_000_000
BEGIN = 1_780_000_000 * SECOND
ANSWERS, SHOWN = 3000, 4


class Child:
    """The writer as a process that is started again after each kill."""

    def __init__(self, home: Path, broker: str) -> None:
        self._command = [sys.executable, "-m", "tests.faults.stats_child", str(home), broker]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(20)


def until(ask: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Traffic:
    """Answers and what users do, 20 s of event time apart; every tenth event is sent twice."""

    def __init__(self, settings: Settings) -> None:
        self._producer = EventProducer(settings.kafka, delivery_timeout_s=30)
        self._draw = random.Random(3)
        self.clicked: set[tuple[str, str]] = set()
        self.shown = 0

    def send(self, first: int, count: int) -> None:
        answers, events = [], []
        for number in range(first, first + count):
            surface, user, at = self._draw.choice(["home", "mail"]), f"u{number % 50}", BEGIN + 20 * SECOND * number
            items = [str(item) for item in self._draw.sample(range(100), SHOWN)]
            shown = [{"item_id": item, "position": n, "sources": [f"s{n % 2}"]} for n, item in enumerate(items, 1)]
            body = {
                "request_id": f"r{number}",
                "surface": surface,
                "bundle": "b",
                "time": format_time(at),
                "items": shown,
            }
            answers.append((user.encode(), orjson.dumps({**body, "user_id": user})))
            self.shown += SHOWN
            what = {"request_id": f"r{number}", "surface": surface, "user_id": user}
            if surface == "mail":
                events += [self._event(what, "impression", item, at + SECOND) for item in items]
            for item in self._draw.sample(items, self._draw.choice([0, 0, 1, 2])):
                self.clicked.add((f"r{number}", item))
                events.append(self._event(what, "click", item, at + 5 * SECOND))
        events += self._draw.sample(events, len(events) // 10)
        self._producer.send_blocking(EVENTS, events)  # before the answers that they react to
        self._producer.send_blocking(IMPRESSIONS, answers)

    @staticmethod
    def _event(what: dict[str, Any], kind: str, item: str, at: int) -> tuple[bytes, bytes]:
        identity = f"{what['request_id']}-{kind}-{item}"
        body = {**what, "event_type": kind, "item_id": item, "event_id": identity, "event_time": format_time(at)}
        return what["user_id"].encode(), orjson.dumps(body)

    def close(self) -> None:
        self._producer.close()


def whole_log(settings: Settings) -> Read:
    """Everything both topics hold."""
    held, read = bounds(settings.kafka, TOPICS), Read()
    consumer = Consumer(consumer_config(settings.kafka))
    places = [(topic, partition) for topic in TOPICS for partition in held[topic].end]
    consumer.assign([TopicPartition(topic, partition, held[topic].first[partition]) for topic, partition in places])
    left = sum(held[topic].end[p] - held[topic].first[p] for topic, p in places)
    while len(read.messages) < left:
        read.messages += consumer.consume(1000, 0.2)
    consumer.close()
    read.offsets = {(topic, partition): held[topic].end[partition] for topic, partition in places}
    return read


def of_the_lake(log: StatsBatch, settings: Settings) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Hours by `manta lake figures`: of events that the lake has once."""
    ordered = log.events.sort_by([("partition", "ascending"), ("offset", "ascending")])
    _, first = np.unique(ordered["event_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    once = ordered.take(pa.array(np.sort(first)))
    found = fold_tables(log.impressions, once, settings, tumbling(HOUR_US))
    starts = found["start"].cast(pa.int64()).to_pylist()
    return {
        (start, *(row[name] for name in KEYS)): tuple(row[name] for name in SUMS)
        for start, row in zip(starts, found.to_pylist(), strict=True)
    }


def test_killed_at_random_the_figures_equal_the_batch_computation(own_kafka: tuple[str, Path], tmp_path: Path) -> None:
    settings, home = settings_for(own_kafka[0]), tmp_path / "home"
    ensure_topics(settings.kafka, TOPICS)
    draw, traffic, child = random.Random(5), Traffic(settings), Child(home, own_kafka[0])
    reader = StatsReader(settings.stats, home, "test")
    rounds = 6
    try:
        for round_ in range(rounds):
            traffic.send(round_ * ANSWERS // rounds, ANSWERS // rounds)
            time.sleep(0.3 + draw.random() if round_ else 2.0)
            child.end(signal.SIGKILL)
            child.start()
        traffic.close()
        last = BEGIN + 20 * SECOND * (ANSWERS - 1)

        def everything_read() -> bool:
            try:
                return (reader.progress().complete or 0) >= last
            except StateUnavailable:
                return False

        until(everything_read)
        until(lambda: len(reader.trending("home")["items"]) == 100)
    finally:
        child.end(signal.SIGTERM)
        reader.close()
    log, batch = to_batch(whole_log(settings), settings.events, now_ms=0), MemoryHeld()
    StatsFold(batch, settings).apply(log, now_us=time.time_ns() // 1000)
    live = RocksHeld(StatsPaths(home).database)
    for family in (HOURS, DAYS, ITEM_HOURS, ITEMS):
        assert dict(live.scan(family, b"", b"\xff" * 200)) == batch.families[family]
    hours = [read_figure(*pair) for pair in live.scan(HOURS, b"", b"\xff" * 200)]
    assert {one[:-1]: one.counts for one in hours} == of_the_lake(log, settings)
    counts = [one.counts for pair in live.scan(DAYS, b"", b"\xff" * 200) if not (one := read_figure(*pair)).by_source]
    live.close()
    assert [sum(column) for column in zip(*counts, strict=True)] == [traffic.shown, len(traffic.clicked), 0]
