"""Answers, and the events that react to them: records by request id, and the differences they make to the figures."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.stats.attribution import (
    CLICKED,
    CONVERTED,
    POSTED,
    Counts,
    Place,
    Record,
    contributions,
    left_out,
    new_record,
    newest,
    note_answer,
    note_posted,
    note_reaction,
)
from app.stats.counters import time_key, time_of
from app.stats.held import ANSWERS, DUE, Draft

Changed = dict[Place, Counts]


class Joins:
    """Takes what is not late, by request id. For one thread."""

    def __init__(self, posted_surfaces: frozenset[str], window_us: int, kinds: dict[str, int]) -> None:
        """Surfaces where the client says what was shown, the attribution window, and what each event type is."""
        self._posted_surfaces, self._window_us, self._kinds = posted_surfaces, window_us, kinds

    def apply(self, impressions: pa.Table, events: pa.Table, draft: Draft) -> Changed:
        """What these rows (IMPRESSION_COLUMNS, EVENT_COLUMNS of `kinds`) change; their records go into the draft."""
        answers, reactions = _answers(impressions), self._reactions(events)
        requests = list(dict.fromkeys([*answers, *reactions]))
        keys = [request.encode() for request in requests]
        changed: dict[Place, Counts] = {}
        for request, key, held in zip(requests, keys, draft.get(ANSWERS, keys), strict=True):
            record: Record = new_record() if held is None else orjson.loads(held)
            before = {} if held is None else contributions(record, self._posted_surfaces, self._window_us)
            for answer in answers.get(request, ()):
                note_answer(record, answer)
            for item_id, kind, time, posted in reactions.get(request, ()):
                if kind == POSTED:
                    note_posted(record, item_id, posted)
                else:
                    note_reaction(record, item_id, kind, time)
            _difference(before, contributions(record, self._posted_surfaces, self._window_us), changed)
            draft.put(ANSWERS, key, orjson.dumps(record))
            if held is None:
                draft.put(DUE, time_key(newest(record)) + key, b"")
        return changed

    def forget(self, draft: Draft, passed_us: int, limit: int, late: Counter[str]) -> None:
        """Lets go of records that nothing can be added to any more: all that is newest in them lies before `passed_us`.

        Args:
            draft: where it is noted.
            passed_us: microseconds.
            limit: how many records are looked at.
            late: reactions that count for no impression are added here, as `unmatched`.
        """
        passed = [key for key, _ in zip(draft.scan(DUE, b"", time_key(passed_us)), range(limit), strict=False)]
        names = [key[8:] for key, _ in passed]
        for (due, _), name, held in zip(passed, names, draft.get(ANSWERS, names), strict=True):
            draft.put(DUE, due, None)
            if held is None:
                continue
            record = orjson.loads(held)
            if (last := newest(record)) > time_of(due) and last >= passed_us:
                draft.put(DUE, time_key(last) + name, b"")
                continue
            late["unmatched"] += left_out(record, self._posted_surfaces, self._window_us)
            draft.put(ANSWERS, name, None)

    def _reactions(self, events: pa.Table) -> dict[str, list[tuple[str, int, int, list[object]]]]:
        found: dict[str, list[tuple[str, int, int, list[object]]]] = defaultdict(list)
        names = ("request_id", "item_id", "event_type", "surface", "variant", "bundle")
        columns = [events[name].to_pylist() for name in names]
        times = events["event_time"].cast(pa.int64()).to_pylist()
        for request, item_id, kind, surface, variant, bundle, time in zip(*columns, times, strict=True):
            found[request].append((item_id, self._kinds[kind], time, [time, surface, variant, bundle]))
        return found


def kinds_of(impression: str, clicks: tuple[str, ...], conversions: tuple[str, ...]) -> dict[str, int]:
    """Event type → what it says about an item of an answer."""
    return {impression: POSTED, **dict.fromkeys(clicks, CLICKED), **dict.fromkeys(conversions, CONVERTED)}


def _answers(impressions: pa.Table) -> dict[str, list[list[object]]]:
    found: dict[str, list[list[object]]] = defaultdict(list)
    columns = [impressions[name].to_pylist() for name in ("request_id", "surface", "variant", "bundle")]
    times = impressions["time"].cast(pa.int64()).to_pylist()
    for request, surface, variant, bundle, time, shown in zip(*columns, times, _shown(impressions), strict=True):
        found[request].append([time, surface, variant, bundle, shown])
    return found


def _shown(impressions: pa.Table) -> Iterator[dict[str, list[str] | None]]:
    """Of each answer its items with their sources. Nested columns as Python values would cost ten times as much."""
    for items in impressions["items"].chunks:
        ids = pc.struct_field(items.values, "item_id").to_pylist()
        named = pc.struct_field(items.values, "sources")
        names, bounds = named.values.to_pylist(), named.offsets.to_pylist()
        sources = [names[start:end] or None for start, end in pairwise(bounds)]
        for start, end in pairwise(items.offsets.to_pylist()):
            yield dict(zip(ids[start:end], sources[start:end], strict=True))


def _difference(before: Changed, now: Changed, changed: Changed) -> None:
    for sign, counted in ((-1, before), (1, now)):
        for place, (impressions, clicks, conversions) in counted.items():
            held = changed.get(place, (0, 0, 0))
            changed[place] = (
                held[0] + sign * impressions,
                held[1] + sign * clicks,
                held[2] + sign * conversions,
            )
