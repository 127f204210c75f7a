"""The state without Kafka: what the writer applies, what a replica's catch-up and a lookup cost."""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.history import Entry, fold, read
from app.state.layout import database
from app.state.position import Position
from app.state.replica import StateReplica
from app.state.store import StateStore

USERS, ITEMS, BATCH = 20_000, 9_000, 2_000


def run(events: int = 200_000) -> dict[str, float]:
    """CPU figures, so that they hold on a busy machine too: events per core-second, microseconds per call."""
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
