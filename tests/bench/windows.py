"""Event-time windows: tumbling hourly counts of CTR over Arrow batches, beside a plain pyarrow group_by."""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.events.columns import MICROS
from app.events.windows import Session, Sliding, WindowFold, Windows, tumbling

HOUR_US = 3_600_000_000
KEYS = ("surface", "variant", "bundle")
SUMS = ("impressions", "clicks")
BATCH = 50_000


def run(events: int = 2_000_000) -> dict[str, float]:
    """Events per core-second (CPU time, so that it holds on a busy machine too) and their ratio to the group_by.

    A week of events, out of order by up to ten minutes, in batches as ingest has them; 6 surfaces, 2 variants, 3
    bundles, 4 streams. The group_by gets the hours as a column, no watermark, and everything in one piece.
    """
    pa.set_cpu_count(1)
    rows = _rows(events)
    batches = [rows.slice(first, BATCH) for first in range(0, events, BATCH)]
    hours = rows.append_column("hour", pc.floor_temporal(rows["time"], unit="hour"))

    def fold(windows: Windows, kept: int) -> WindowFold:
        fold = WindowFold(
            windows, KEYS, SUMS, time="time", stream="partition", streams=range(4), allowed_lateness_us=HOUR_US
        )
        for batch in batches[:kept]:
            fold.add(batch)
            fold.closed()
        fold.finish()
        assert fold.late == 0
        return fold

    def plain() -> pa.Table:
        by = [*KEYS, "hour"]
        return hours.group_by(by, use_threads=False).aggregate([([], "count_all"), *((name, "sum") for name in SUMS)])

    plain()  # warm
    group_by = _seconds(plain)
    tumbled = _seconds(lambda: fold(tumbling(HOUR_US), len(batches)))
    some = max(1, len(batches) // 4)
    sessions = _seconds(lambda: fold(Session(HOUR_US // 2), some))
    slid = _seconds(lambda: fold(Sliding(HOUR_US), some))
    return {
        "events": float(events),
        "tumbling_events_per_core_second": round(events / tumbled),
        "group_by_events_per_core_second": round(events / group_by),
        "tumbling_of_group_by": round(group_by / tumbled, 3),
        "session_events_per_core_second": round(some * BATCH / sessions),
        "sliding_events_per_core_second": round(some * BATCH / slid),
    }


def _rows(count: int) -> pa.Table:
    draw = np.random.default_rng(0)
    week = np.linspace(1_760_000_000_000_000, 1_760_000_000_000_000 + 168 * HOUR_US, count).astype(np.int64)

    def names(prefix: str, kinds: int) -> pa.Array:
        codes = pa.array(draw.integers(0, kinds, count).astype(np.int32))
        return pa.DictionaryArray.from_arrays(codes, [f"{prefix}-{n}" for n in range(kinds)]).cast(pa.string())

    return pa.table(
        {
            "surface": names("surface", 6),
            "variant": names("variant", 2),
            "bundle": names("bundle-2026-11-21", 3),
            "time": pa.array(week - draw.integers(0, HOUR_US // 6, count)).cast(MICROS),
            "partition": pa.array(draw.integers(0, 4, count).astype(np.int32)),
            "impressions": pa.array(draw.integers(1, 11, count)),
            "clicks": pa.array((draw.random(count) < 0.1).astype(np.int64)),
        }
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
