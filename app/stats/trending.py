"""Trending items per surface: events per hour, and the lists made of them."""

import heapq
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.window_merge import START
from app.events.windows import aggregate, tumbling
from app.settings import Settings
from app.state.history import NOT_IN_HISTORY
from app.stats.counters import HOUR_US, time_key
from app.stats.held import ITEM_HOURS, ITEMS, Draft, Held

LONGEST = 500  # items of a list: the most that can be asked for
_COUNT = struct.Struct("<q")
_KEYS = ("surface", "event_type", "item_id")
_ANY = ""  # surface of events that name none: they count on every surface
_SEPARATOR = b"\0"
_LAST = b"\xff"


class Trending:
    """Counts and lists. For one thread."""

    def __init__(self, settings: Settings) -> None:
        """Takes the surfaces with their weights, and `stats.trending_hours`."""
        self._weights: dict[str, dict[str, float]] = {
            name: {kind: one.weight for kind, one in surface.event_weights.items() if one.weight > 0}
            for name, surface in settings.surfaces.items()
        }
        self._hours = sorted(settings.stats.trending_hours)
        kinds = {kind for weights in self._weights.values() for kind in weights} - NOT_IN_HISTORY
        self._kinds = pa.array(sorted(kinds), pa.string())
        self._names = pa.array([_ANY, *self._weights], pa.string())

    def counts(self, events: pa.Table) -> pa.Table:
        """The events (EVENT_COLUMNS) that are about an item and have a weight somewhere."""
        named = events.set_column(
            events.schema.get_field_index("surface"), "surface", pc.fill_null(events["surface"], _ANY)
        )
        chosen = pc.and_(
            pc.and_(pc.is_in(named["event_type"], value_set=self._kinds), pc.is_valid(named["item_id"])),
            pc.is_in(named["surface"], value_set=self._names),
        )
        return named.filter(chosen)

    def add(self, events: pa.Table, late: NDArray[np.bool_], now_us: int, draft: Draft) -> None:
        """Adds events of `counts` to the items of all time and, those that are not late, to their hours.

        Args:
            events: rows.
            late: bool (n,).
            now_us: the as-of time in microseconds: hours that no window reaches from there are left out.
            draft: where it is noted.
        """
        ever = events.group_by(list(_KEYS), use_threads=False).aggregate([([], "count_all")])
        _increase(ITEMS, {_item_key(row): row["count_all"] for row in ever.to_pylist()}, draft)
        rows = events.filter(pa.array(~late))
        hourly = aggregate(rows, rows["event_time"].cast(pa.int64()).to_numpy(), tumbling(HOUR_US), _KEYS, ())
        oldest = self._first_hour(now_us, self._hours[-1])
        _increase(
            ITEM_HOURS,
            {_hour_key(row): row["count"] for row in hourly.to_pylist() if row[START] >= oldest},
            draft,
        )

    def expire(self, now_us: int, limit: int, draft: Draft) -> None:
        """Deletes at most `limit` counts of hours that no window reaches any more."""
        below = time_key(self._first_hour(now_us, self._hours[-1]))
        for surface in (_ANY, *self._weights):
            prefix = surface.encode() + _SEPARATOR
            for (key, _), _place in zip(draft.scan(ITEM_HOURS, prefix, prefix + below), range(limit), strict=False):
                draft.put(ITEM_HOURS, key, None)

    def lists(self, held: Held, now_us: int | None) -> dict[str, Any]:
        """Surface → `{"start", "end", "items": [[item id, score, count], ...]}`, microseconds; at most LONGEST items.

        Score and count are those of the first window. Items beyond it come from the next longer one, then from all
        time, best first there, with what they have in the first window: nothing.
        """
        return {surface: self._list(held, surface, now_us) for surface in self._weights}

    def _list(self, held: Held, surface: str, now_us: int | None) -> dict[str, Any]:
        if now_us is None:
            return {"start": None, "end": None, "items": []}
        weights, totals = self._weights[surface], _Totals()
        end = upto = self._first_hour(now_us, 1) + HOUR_US
        items: dict[str, list[Any]] = {}
        for hours in self._hours:
            start = self._first_hour(now_us, hours)
            for name in {_ANY, surface}:
                prefix = name.encode() + _SEPARATOR
                for key, value in held.scan(ITEM_HOURS, prefix + time_key(start), prefix + time_key(upto)):
                    totals.add(key[len(prefix) + 8 :], value, weights)
            totals.fill(items, counted=upto == end)
            upto = start
            if len(items) >= LONGEST:
                break
        else:
            self._fill_from_all_time(held, surface, weights, items)
        found = [[item_id, *counts] for item_id, counts in items.items()]
        return {"start": self._first_hour(now_us, self._hours[0]), "end": end, "items": found[:LONGEST]}

    @staticmethod
    def _fill_from_all_time(
        held: Held, surface: str, weights: Mapping[str, float], items: dict[str, list[Any]]
    ) -> None:
        ever = _Totals()
        for name in {_ANY, surface}:
            prefix = name.encode() + _SEPARATOR
            for key, value in held.scan(ITEMS, prefix, prefix + _LAST):
                ever.add(key[len(prefix) :], value, weights)
        ever.fill(items, counted=False)

    @staticmethod
    def _first_hour(now_us: int, hours: int) -> int:
        """Start of the oldest of so many hours, the one of `now_us` included."""
        return now_us - now_us % HOUR_US - (hours - 1) * HOUR_US


class _Totals:
    """Score and count by item."""

    def __init__(self) -> None:
        self._totals: dict[bytes, tuple[float, int]] = {}

    def add(self, kind_and_item: bytes, value: bytes, weights: Mapping[str, float]) -> None:
        kind, item = kind_and_item.split(_SEPARATOR, 1)
        if weight := weights.get(kind.decode()):
            (count,) = _COUNT.unpack(value)
            score, events = self._totals.get(item, (0.0, 0))
            self._totals[item] = (score + weight * count, events + count)

    def fill(self, items: dict[str, list[Any]], *, counted: bool) -> None:
        """Adds the best to `items` until there are LONGEST; `counted`: with their score and count, else with none."""
        best = heapq.nsmallest(LONGEST, self._totals.items(), key=lambda pair: (-pair[1][0], pair[0]))
        for item, (score, count) in best:
            if len(items) >= LONGEST:
                return
            items.setdefault(item.decode(), [score, count] if counted else [0.0, 0])


def _item_key(row: dict[str, Any]) -> bytes:
    key: bytes = _SEPARATOR.join((row["surface"].encode(), row["event_type"].encode(), row["item_id"].encode()))
    return key


def _hour_key(row: dict[str, Any]) -> bytes:
    kind_and_item = _SEPARATOR.join((row["event_type"].encode(), row["item_id"].encode()))
    key: bytes = row["surface"].encode() + _SEPARATOR + time_key(row[START]) + kind_and_item
    return key


def _increase(family: str, more: dict[bytes, int], draft: Draft) -> None:
    for (key, count), held in zip(more.items(), draft.get(family, list(more)), strict=True):
        draft.put(family, key, _COUNT.pack(count + (_COUNT.unpack(held)[0] if held else 0)))
