"""Kafka to committed lake: events per core-second over all processes of the ingest, and its single steps.

On the Apache Kafka of the settings (whose topics it deletes), else on one that it starts; on a Ray of its own.
"""

import argparse
import json
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
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


def run(events: int = 1_000_000, bootstrap: str = "") -> dict[str, Any]:
    """Fills topics that it makes anew, measures, prints the table.

    Args:
        events: how many events are produced.
        bootstrap: Kafka's address; empty: that of the settings, else one is started.

    Returns:
        Events per core-second: `total` and `cold` (all processes of `run_ingest`, Ray's included; see `_whole`), the
        steps `consume`, `decode`, `dedup`, `write`, their `floor`, and `raw`: confluent-kafka's consumer alone.
    """
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
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as folder:
        figures = _steps(settings, Path(folder) / "steps", events)
        figures |= _whole(settings, Path(folder) / "whole", events)
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


def _whole(settings: Settings, home: Path, events: int) -> dict[str, Any]:
    """`run_ingest` on a Ray of its own, with the CPU time of every process that belongs to it.

    `cold` is the first ingest on a new Ray (its workers and Ray Data's actors import for seconds), `total` a second one
    into another lake by the same driver, as `--follow` goes on.
    """
    import ray

    from tune.ingest import run_ingest

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=400_000_000, logging_level="ERROR")
    figures: dict[str, Any] = {"events": events}
    try:
        for name in ("cold", "total"):
            started, clock = _cpu_seconds(), time.perf_counter()
            report = run_ingest(settings, home / name)
            figures |= {
                name: events / (_cpu_seconds() - started),
                f"{name}_wall": events / (time.perf_counter() - clock),
            }
            if report.rows[EVENTS] != events:
                raise AssertionError(f"ingest: found {report.rows[EVENTS]} rows, wanted {events}")
    finally:
        ray.shutdown()
    return figures


def _cpu_seconds() -> float:
    """CPU time of this process and of all that it has started, the ended ones included."""
    me = psutil.Process()
    spent = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def _print(figures: dict[str, Any]) -> None:
    figures["of_floor"] = figures["total"] / figures["floor"]
    figures["of_raw"] = figures["total"] / figures["raw"]
    for name in ("raw", "consume", "decode", "dedup", "write", "floor", "cold", "total"):
        print(f"{name:>16} {figures[name]:>12,.0f} events per core-second")
    print(f"{'total, by clock':>16} {figures['total_wall']:>12,.0f} events per second")
    print(f"{'total / floor':>16} {figures['of_floor']:>12.2f}\n{'total / raw':>16} {figures['of_raw']:>12.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--kafka", default="", metavar="HOST:PORT")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.events, given.kafka)
    if given.json:
        print(json.dumps({name: float(np.round(value, 3)) for name, value in found.items()}))
