"""The state: what the writer applies, from Kafka and from memory, and what a replica's catch-up and a lookup cost."""

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from app.events.producer import EventProducer
from app.events.schema import EVENTS, format_time
from app.events.topics import ensure_topics
from app.settings import Settings, load_settings
from app.state.batch import Batch, StateEvent
from app.state.history import Entry, fold, read
from app.state.layout import database
from app.state.position import Position
from app.state.replica import StateReplica
from app.state.store import StateStore
from app.state.writer import StateWriterLoop
from deployments.collector import rest_the_collector
from tests.bench.system import kafka

USERS, ITEMS, BATCH = 20_000, 9_000, 5_000
_FEW = {"MANTA_KAFKA__PARTITIONS": "8"}


def run(events: int = 200_000) -> dict[str, float]:
    """CPU figures, so that they hold on a busy machine too: events per core-second, microseconds per call."""
    return {**_from_kafka(events), **_alone(events)}


def _from_kafka(events: int) -> dict[str, float]:
    """The writer as it runs: read from Apache Kafka, decoded, checked, applied; CPU of all its threads."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder, kafka(Path(folder)) as address:
        settings = load_settings(None, {"MANTA_KAFKA__BOOTSTRAP_SERVERS": address, **_FEW})
        ensure_topics(settings.kafka)
        producer = EventProducer(settings.kafka, delivery_timeout_s=60, linger_ms=20)
        try:
            producer.send_blocking(EVENTS, _messages(events))
        finally:
            producer.close()
        writer = StateWriterLoop(settings, Path(folder))
        rest_the_collector()  # as its actor does
        cpu, began = time.process_time(), time.monotonic()
        thread = threading.Thread(target=writer.run)
        thread.start()
        while writer.status()["events"] < events:
            time.sleep(0.05)
        cpu, seconds = time.process_time() - cpu, time.monotonic() - began
        writer.stop()
        thread.join()
    return {
        "events_per_core_second_from_kafka": round(events / cpu),
        "events_per_second_from_kafka": round(events / seconds),
    }


def _messages(events: int) -> Iterator[tuple[bytes, bytes]]:
    draw = random.Random(0)
    for number in range(events):
        user = f"user-{draw.randrange(USERS)}"
        body = {
            "schema_version": 1,
            "event_id": f"{draw.getrandbits(128):032x}",
            "user_id": user,
            "item_id": str(draw.randrange(ITEMS)),
            "event_type": "click",
            "event_time": format_time(1_767_225_600_000_000 + number * 1000),
        }
        yield user.encode(), orjson.dumps(body)


def _alone(events: int) -> dict[str, float]:
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store, position = StateStore(database(root / "db", 0), Settings()), Position.create(root / "position")
        replica = StateReplica(root / "db", root / "replica", root / "position")
        batches = [_batch(first, BATCH, draw) for first in range(0, events, BATCH)]
        started = time.process_time()  # with RocksDB's own threads
        for batch in batches:
            position.publish(store.apply(batch))
        applying = time.process_time() - started
        replica.catch_up()
        following = []
        for number in range(200):
            position.publish(store.apply(_batch(events + number, 1, draw)))
            following.append(_seconds(replica.catch_up))
        keys = [("user", str(user)) for user in range(0, USERS, 20)]
        looking = _seconds(lambda: replica.histories(keys))  # type: ignore[arg-type]
        standing = _seconds(lambda: [replica.behind() for _ in range(10_000)])
        replica.close()
        store.close()
    entries = [Entry(n * 10**6, 0, n, str(draw.randrange(ITEMS)), "rating", 4.0) for n in range(200)]
    record = fold(entries, 3000)
    decoding = _seconds(lambda: [read(record) for _ in range(1000)])
    return {
        "applied_events_per_core_second": round(events / applying),
        "catch_up_us_p50": round(sorted(following)[100] * 1e6, 1),
        "catch_up_us_p99": round(sorted(following)[198] * 1e6, 1),
        "history_lookup_us": round(looking / len(keys) * 1e6, 1),
        "decode_200_entries_us": round(decoding * 1e3, 1),
        "behind_ns": round(standing * 1e5),
    }


def _batch(first: int, size: int, draw: random.Random) -> Batch:
    events = [
        StateEvent(
            0,
            number,
            1_700_000_000_000 + number,
            f"{draw.getrandbits(128):032x}",
            str(draw.randrange(USERS)),
            None,
            str(draw.randrange(ITEMS)),
            "rating",
            number * 1_000_000,
            4.0,
        )
        for number in range(first, first + size)
    ]
    return Batch(events=events, offsets={("events", 0): first + size})


def _seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
