"""The live figures without Kafka: events and answers per core-second, decoded, folded and written to RocksDB."""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa

from app.events.columns import RECORDS, decode
from app.events.impressions import decode_impressions
from app.events.schema import EVENTS, IMPRESSIONS, format_time
from app.settings import Settings
from app.stats.batch import StatsBatch
from app.stats.fold import StatsFold
from app.stats.store import RocksHeld

BEGIN = 1_780_000_000_000_000
BATCH, SHOWN = 5000, 10


def run(events: int = 100_000, answers: int = 20_000) -> dict[str, float]:
    """CPU figures. Ratings with ids of their own by 5,000 users over 9,000 items; answers of ten items, two sources."""
    pa.set_cpu_count(1)
    draw, settings = random.Random(0), Settings()
    wire = _records([_rating(number, draw) for number in range(events)])
    shown = _records([_answer(number, draw) for number in range(answers)])
    decoded, decoding = _timed(lambda: decode(EVENTS, wire, settings.events).events)
    impressions, reading = _timed(lambda: decode_impressions(IMPRESSIONS, shown, 600.0).events)
    with tempfile.TemporaryDirectory() as folder:
        held = RocksHeld(Path(folder))
        fold = StatsFold(held, settings)

        def apply(rows: pa.Table, topic: str, name: str) -> None:
            for first in range(0, len(rows), BATCH):
                part = rows.slice(first, BATCH).combine_chunks()
                offsets = {(topic, 0): first + len(part)}
                batch = (
                    StatsBatch(part, offsets=offsets)
                    if name == "events"
                    else StatsBatch(impressions=part, offsets=offsets)
                )
                fold.apply(batch, now_us=2 * BEGIN)

        _, counting = _timed(lambda: apply(decoded, EVENTS, "events"))
        _, joining = _timed(lambda: apply(impressions, IMPRESSIONS, "impressions"))
        _, listing = _timed(fold.list_trending)

        def nothing() -> None:
            for _ in range(200):
                fold.apply(StatsBatch(), now_us=2 * BEGIN)

        _, alone = _timed(nothing)
        held.close()
    return {
        "events_per_core_second": round(events / (decoding + counting)),
        "answers_per_core_second": round(answers / (reading + joining)),
        "events_folded_per_core_second": round(events / counting),
        "answers_folded_per_core_second": round(answers / joining),
        "trending_list_ms": round(listing * 1000, 1),
        "empty_batch_us": round(alone / 200 * 1e6, 1),
    }


def _records(values: list[bytes]) -> pa.Table:
    count = len(values)
    arrivals = [(BEGIN + 10**12) // 1000] * count
    return pa.table([[0] * count, list(range(count)), arrivals, [b"u"] * count, values], schema=RECORDS)


def _rating(number: int, draw: random.Random) -> bytes:
    return orjson.dumps(
        {
            "event_id": f"{draw.getrandbits(128):032x}",
            "user_id": f"u{draw.randrange(5000)}",
            "item_id": str(draw.randrange(9000)),
            "event_type": "rating",
            "value": 4.0,
            "event_time": format_time(BEGIN + number * 1_000_000),
        }
    )


def _answer(number: int, draw: random.Random) -> bytes:
    items = [
        {
            "item_id": str(draw.randrange(9000)),
            "position": n,
            "score": 0.5,
            "propensity": 1.0,
            "sources": ["ease", "knn"],
        }
        for n in range(1, SHOWN + 1)
    ]
    who = {"request_id": f"r{number}", "surface": "home", "variant": "champion", "bundle": "b"}
    return orjson.dumps({**who, "time": format_time(BEGIN + number * 5_000_000), "items": items})


def _timed(work: Callable[[], object]) -> tuple[pa.Table, float]:
    started = time.process_time()
    return work(), time.process_time() - started
