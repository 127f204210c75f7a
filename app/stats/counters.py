"""The figures themselves: impressions, clicks and conversions per hour and per day, as keys and values."""

import struct
from collections.abc import Mapping
from typing import NamedTuple

import orjson
import pyarrow as pa

from app.events.window_merge import START
from app.events.windows import aggregate, tumbling
from app.stats.attribution import Counts, Place
from app.stats.held import DAYS, HOURS, Draft

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
SIZES = {HOURS: HOUR_US, DAYS: DAY_US}
_COUNTS = struct.Struct("<qqq")
_SHIFT = 1 << 63  # times before 1970 sort below those after
KEYS = ("surface", "variant", "bundle", "by_source", "source")
SUMS = ("impressions", "clicks", "conversions")
TIME = "time"


class Figure(NamedTuple):
    """One row of figures: a window's start in microseconds, who showed it, and the counts."""

    start: int
    surface: str
    variant: str | None
    bundle: str | None
    by_source: bool
    source: str | None
    counts: Counts


def time_key(time_us: int) -> bytes:
    """Eight bytes that sort as the times do."""
    return (time_us + _SHIFT).to_bytes(8, "big")


def time_of(key: bytes) -> int:
    """The time at the beginning of a key."""
    return int.from_bytes(key[:8], "big") - _SHIFT


def read_figure(key: bytes, value: bytes) -> Figure:
    """The figure that a pair of HOURS or DAYS means."""
    surface, variant, bundle, *source = orjson.loads(key[8:])
    return Figure(
        time_of(key), surface, variant, bundle, bool(source), source[0] if source else None, _COUNTS.unpack(value)
    )


def add_figures(changed: Mapping[Place, Counts], draft: Draft, oldest: Mapping[str, int]) -> None:
    """Adds differences to the hours and days they fall into.

    Args:
        changed: what is added at each place; may be negative.
        draft: where it is noted.
        oldest: family → start of the oldest window that is kept, microseconds.
    """
    rows = figure_rows(changed)
    if not len(rows):
        return
    times = rows[TIME].to_numpy()
    for family, size in SIZES.items():
        _add(aggregate(rows, times, tumbling(size), KEYS, SUMS), family, draft, oldest[family])


def figure_rows(changed: Mapping[Place, Counts]) -> pa.Table:
    """`time` (int64, microseconds), KEYS and SUMS: a row a place whose counts are not all zero."""
    rows = [(place, counts) for place, counts in changed.items() if any(counts)]
    return pa.table(
        {
            TIME: pa.array([place.time for place, _ in rows], pa.int64()),
            "surface": pa.array([place.surface for place, _ in rows], pa.string()),
            "variant": pa.array([place.variant for place, _ in rows], pa.string()),
            "bundle": pa.array([place.bundle for place, _ in rows], pa.string()),
            "by_source": pa.array([place.by_source for place, _ in rows], pa.bool_()),
            "source": pa.array([place.source for place, _ in rows], pa.string()),
            **{name: pa.array([counts[n] for _, counts in rows], pa.int64()) for n, name in enumerate(SUMS)},
        }
    )


def _add(found: pa.Table, family: str, draft: Draft, oldest: int) -> None:
    more: dict[bytes, Counts] = {}
    for row in found.to_pylist():
        if row[START] >= oldest:
            who = [row["surface"], row["variant"], row["bundle"], *([row["source"]] if row["by_source"] else [])]
            key = time_key(row[START]) + orjson.dumps(who)
            more[key] = (row["impressions"], row["clicks"], row["conversions"])
    for (key, counts), held in zip(more.items(), draft.get(family, list(more)), strict=True):
        before = (0, 0, 0) if held is None else _COUNTS.unpack(held)
        total = [one + other for one, other in zip(before, counts, strict=True)]
        draft.put(family, key, _COUNTS.pack(*total) if any(total) else None)
