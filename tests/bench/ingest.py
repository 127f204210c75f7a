"""Kafka to committed lake: events per core-second of all processes, its steps, its peak memory, and Ray's own means.

On the Apache Kafka of the settings (whose topics it deletes), else on one that it starts; on a Ray of its own.
MANTA_BENCH_EVENTS=10000000: that many events instead of a million (`--events`), and only Manta's ingest of them.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from app.events.columns import EVENT_COLUMNS, decode
from app.events.identity import SeenEvents, identity_hashes
from app.events.producer import EventProducer
from app.events.ranges import OffsetRange
from app.events.reader import range_consumer, read_range
from app.events.schema import EVENTS
from app.events.topics import ALL_TOPICS, administration, bounds, ensure_topics
from app.lake.commit import append, progress_of
from app.lake.tables import open_lake
from app.settings import KafkaSettings, LakeSettings, Settings, load_settings
from scripts import apache_kafka

PARTITIONS = 8
_EVENTS = 1_000_000
_SHOWN = ("raw", "consume", "decode", "dedup", "write", "floor", "cold", "total", "ray_cold", "ray")


def run(events: int = 0, bootstrap: str = "") -> dict[str, Any]:
    """Fills topics that it makes anew, measures, prints the table.

    Args:
        events: how many events are produced; 0: MANTA_BENCH_EVENTS, else a million.
        bootstrap: Kafka's address; empty: that of the settings, else one is started.

    Returns:
        Events per core-second: `total` and `cold` (all processes of `run_ingest`, Ray's included), the same of Ray's
        own means as `ray` and `ray_cold`, the steps `consume`, `decode`, `dedup`, `write`, their `floor`, and `raw`:
        confluent-kafka's consumer alone. `peak_bytes` and `idle_bytes` (`ray_…`): see `whole_ingest`. Of more than a
        million events only `cold` and memory.
    """
    events = events or int(os.environ.get("MANTA_BENCH_EVENTS", _EVENTS))
    address = bootstrap or load_settings().kafka.bootstrap_servers
    if not address:
        with tempfile.TemporaryDirectory(prefix="manta-bench-kafka-") as folder:
            started = apache_kafka.start(Path(folder))
            try:
                return run(events, started)
            finally:
                apache_kafka.end(Path(folder), signal.SIGKILL)
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=address, partitions=PARTITIONS), lake=LakeSettings(partition="month")
    )
    _produce(settings, events)
    figures: dict[str, Any] = {"events": events}
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as folder:
        if events <= _EVENTS:
            figures |= _steps(settings, Path(folder) / "steps", events)
            figures |= _whole(address, Path(folder), events)
        else:
            figures |= _child("manta", address, Path(folder), events, "once")
    _print(figures)
    return figures


def _produce(settings: Settings, events: int) -> None:
    with administration(settings.kafka) as admin:
        there = [topic["name"] for topic in admin.describe_topics(list(ALL_TOPICS)) if not topic["error_code"]]
        if there:
            admin.delete_topics(there)
    time.sleep(2)
    ensure_topics(settings.kafka)
    producer = EventProducer(settings.kafka, delivery_timeout_s=120, linger_ms=20)
    producer.send_blocking(EVENTS, _messages(events))
    producer.close()


def _messages(events: int) -> Iterator[tuple[bytes, bytes]]:
    rnd = random.Random(0)
    for place in range(events):
        user = f"u{rnd.randrange(50_000)}"
        message = {
            "schema_version": 1,
            "event_id": f"{rnd.getrandbits(128):032x}",
            "user_id": user,
            "item_id": str(rnd.randrange(10_000)),
            "event_type": "rating",
            "event_time": f"2025-{1 + place % 12:02d}-{1 + place % 28:02d}T10:{place % 60:02d}:00Z",
            "value": rnd.randrange(1, 11) / 2,
        }
        yield user.encode(), orjson.dumps(message)


def _steps(settings: Settings, home: Path, events: int) -> dict[str, Any]:
    """Each step alone, in this process on one thread: seconds of CPU."""
    pa.set_cpu_count(1)
    held = bounds(settings.kafka, [EVENTS])[EVENTS]
    spent: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        done = work()
        spent[name] = time.process_time() - started
        return done

    cuts = [OffsetRange(EVENTS, part, held.first[part], end) for part, end in held.end.items()]
    step("raw", lambda: _raw(settings, cuts))
    records = step("consume", lambda: _consume(settings, cuts))
    decoded = step("decode", lambda: decode(EVENTS, records, settings.events).events)

    def deduplicate() -> pa.Table:
        hashes = identity_hashes(decoded["user_id"], decoded["session_id"], decoded["event_id"])
        times = decoded["record_time"].cast(pa.int64()).to_numpy() // 1000
        seen = SeenEvents(7 * 86_400_000)
        doubled = seen.duplicates(hashes, times)
        seen.add(hashes[~doubled], times[~doubled])
        return decoded.filter(pa.array(~doubled))

    fresh = step("dedup", deduplicate).cast(EVENT_COLUMNS)
    table = open_lake(settings, home).table(EVENTS)
    step("write", lambda: append(table, fresh, progress_of(table), max_open_partitions=200))
    floor = sum(seconds for name, seconds in spent.items() if name != "raw")
    return {name: events / seconds for name, seconds in spent.items()} | {"floor": events / floor}


def _raw(settings: Settings, cuts: list[OffsetRange]) -> int:
    """What confluent-kafka's consumer does at best: messages, no columns."""
    from confluent_kafka import TopicPartition

    consumer = range_consumer(settings.kafka)
    consumer.assign([TopicPartition(cut.topic, cut.partition, cut.start) for cut in cuts])
    total, wanted = 0, sum(len(cut) for cut in cuts)
    while total < wanted:
        total += sum(message.error() is None for message in consumer.consume(10_000, 1.0))
    consumer.close()
    return total


def _consume(settings: Settings, cuts: list[OffsetRange]) -> pa.Table:
    consumer = range_consumer(settings.kafka)
    tables = [table for cut in cuts for table in read_range(consumer, cut)]
    consumer.close()
    return pa.concat_tables(tables)


def _whole(address: str, home: Path, events: int) -> dict[str, Any]:
    """Ingest and Ray's own means, each in processes of their own (`whole_ingest`)."""
    manta = _child("manta", address, home, events)
    ray = _child("ray", address, home, events)
    return manta | {"ray" if name == "total" else f"ray_{name.removeprefix('total_')}": ray[name] for name in ray}


def _child(way: str, address: str, home: Path, events: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.whole_ingest", way, address, str(events), str(home / way), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _print(figures: dict[str, Any]) -> None:
    for name in _SHOWN:
        if name in figures:
            print(f"{name:>16} {figures[name]:>12,.0f} events per core-second")
    for name in ("cold_wall", "total_wall", "ray_wall"):
        if name in figures:
            print(f"{name.removesuffix('_wall') + ', by clock':>16} {figures[name]:>12,.0f} events per second")
    for name, of in (("floor", "floor"), ("raw", "raw"), ("ray", "ray")):
        if of in figures:
            figures[f"of_{name}"] = figures["total"] / figures[of]
            print(f"{'total / ' + name:>16} {figures[f'of_{name}']:>12.2f}")
    for name in ("idle_bytes", "peak_bytes", "ray_peak_bytes"):
        if name in figures:
            print(f"{name.removesuffix('_bytes').replace('_', ', '):>16} {figures[name] / 1e6:>12,.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--kafka", default="", metavar="HOST:PORT")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.events, given.kafka)
    if given.json:
        print(json.dumps({name: float(np.round(value, 3)) for name, value in found.items()}))
