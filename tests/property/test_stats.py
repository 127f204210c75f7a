"""The live figures against their plain definition, whatever the order of the partitions, the batches, and repeats."""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.columns import EVENT_COLUMNS
from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import EVENTS, IMPRESSIONS
from app.events.windows import Hopping, tumbling
from app.settings import Settings
from app.stats.batch import StatsBatch
from app.stats.counters import HOUR_US, read_figure
from app.stats.fold import StatsFold
from app.stats.from_lake import fold_tables
from app.stats.held import ANSWERS, DAYS, DUE, HOURS, ITEM_HOURS, ITEMS, MemoryHeld

MINUTE = 60_000_000
DAY_US = 24 * HOUR_US
START = 20_000 * DAY_US
NOW = START + 100 * DAY_US
LATENESS, ATTRIBUTION = 20, 40  # minutes
SETTINGS = Settings.model_validate(
    {
        "stats": {"allowed_lateness_s": LATENESS * 60, "attribution_s": ATTRIBUTION * 60, "trending_hours": [2, 4]},
        "surfaces": {"home": {}, "mail": {"impressions": "posted"}},
    }
)
PARTITIONS = 2


class Message(NamedTuple):
    """An answer (`kind` "answer") or an event, in minutes."""

    kind: str
    minute: int
    request: int
    item: int
    surface: str
    partition: int
    repeat: bool  # an event that carries the identity of another
    delay: int  # by which it comes after its time


messages = st.lists(
    st.builds(
        Message,
        st.sampled_from(["answer", "click", "click", "purchase"]),
        st.integers(0, 300),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from(["home", "mail"]),
        st.integers(0, PARTITIONS - 1),
        st.booleans(),
        st.integers(0, LATENESS + 10),
    ),
    max_size=30,
).map(lambda found: sorted(found, key=lambda one: one.minute + one.delay))


def rows_of(found: list[Message]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The log: rows of each topic's partitions. Every item of an answer on `mail` is posted once, a minute later."""
    log: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    posted: set[int] = set()

    def put(topic: str, partition: int, row: dict[str, Any]) -> None:
        place = log[topic, partition]
        place.append({**row, "partition": partition, "offset": len(place), "record_time": START})

    for number, one in enumerate(found):
        time = START + one.minute * MINUTE
        surface = ["home", "mail"][one.request % 2]
        if one.kind == "answer":
            sources = [["a"], ["a", "b"], None]
            items = [{"item_id": str(n), "position": n + 1, "sources": sources[n]} for n in range(3)]
            row = {"request_id": str(one.request), "surface": surface, "bundle": "b", "time": time, "items": items}
            put(IMPRESSIONS, one.partition, row)
            if surface == "mail" and one.request not in posted:
                posted.add(one.request)
                for item in range(2):
                    put(
                        EVENTS,
                        one.partition,
                        _event(one.partition, "impression", time + MINUTE, one.request, item, f"p{number}-{item}"),
                    )
        else:
            identity = f"{one.kind}-{one.request}-{one.item}" if one.repeat else str(number)
            put(EVENTS, one.partition, _event(one.partition, one.kind, time, one.request, one.item, identity))
    return log


def _event(partition: int, kind: str, time: int, request: int, item: int, identity: str) -> dict[str, Any]:
    return {
        "event_id": identity, "user_id": f"u{partition}", "item_id": str(item), "event_type": kind, "event_time": time,
        "request_id": str(request), "surface": "mail" if request % 2 else "home",
    }  # fmt: skip


def folded(log: dict[tuple[str, int], list[dict[str, Any]]], turns: list[tuple[int, int]]) -> MemoryHeld:
    """Reads as `turns` say: (which partition, how many messages), twice what a restart would read again."""
    held, ends = MemoryHeld(), dict.fromkeys(log, 0)
    fold = StatsFold(held, SETTINGS)
    everywhere = list(log)
    turns = [(which, count) for which, count in turns if everywhere] + [(n, 1000) for n in range(len(everywhere))]
    for which, count in turns:
        place = everywhere[which % len(everywhere)]
        first, end = ends[place], min(ends[place] + count, len(log[place]))
        again = log[place][max(0, first - 2) : end]  # what was applied already changes nothing
        schema = EVENT_COLUMNS if place[0] == EVENTS else IMPRESSION_COLUMNS
        table = pa.Table.from_pylist(again, schema)
        topics = {"events": table} if place[0] == EVENTS else {"impressions": table}
        fold.apply(StatsBatch(**topics, offsets={place: end}, partitions=everywhere), now_us=NOW)
        ends[place] = end
        fold = StatsFold(held, SETTINGS)  # as after a crash: all that it knows is held
    return held


def figures(held: MemoryHeld, family: str) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    found = {}
    for key, value in held.families[family].items():
        one = read_figure(key, value)
        found[one.start, one.surface, one.by_source, one.source] = one.counts
    return found


def plain(log: dict[tuple[str, int], list[dict[str, Any]]], size_us: int) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The definition: of all that is not late, what was shown, and what came of it within the attribution window."""
    accepted: dict[str, list[dict[str, Any]]] = {EVENTS: [], IMPRESSIONS: []}
    for (topic, _), rows in log.items():
        name = "event_time" if topic == EVENTS else "time"
        counted: set[str] = set()
        height = None
        for row in rows:
            if topic == EVENTS and row["event_id"] in counted:
                continue
            counted.add(row.get("event_id", ""))
            if height is None or row[name] >= height - LATENESS * MINUTE:
                accepted[topic].append(row)
            height = row[name] if height is None else max(height, row[name])
    answers = {row["request_id"]: row for row in sorted(accepted[IMPRESSIONS], key=lambda row: -row["time"])}
    shown: list[tuple[int, str, str, str, list[str] | None]] = []
    for request, answer in answers.items():
        if answer["surface"] == "home":
            shown += [(answer["time"], "home", request, item["item_id"], item["sources"]) for item in answer["items"]]
    for row in accepted[EVENTS]:
        if row["event_type"] == "impression":
            answer = answers.get(row["request_id"], {})
            near = answer and abs(answer["time"] - row["event_time"]) <= ATTRIBUTION * MINUTE
            sources = answer["items"][int(row["item_id"])]["sources"] if near else None
            shown.append((row["event_time"], "mail", row["request_id"], row["item_id"], sources))
    totals: Counter[tuple[Any, ...]] = Counter()
    no_source: list[str | None] = [None]
    for time, surface, request, item, sources in shown:
        came = {
            row["event_type"]
            for row in accepted[EVENTS]
            if (row["request_id"], row["item_id"]) == (request, item)
            and abs(row["event_time"] - time) <= ATTRIBUTION * MINUTE
        }
        for by_source, source in [(False, None), *((True, source) for source in sources or no_source)]:
            key = (time - time % size_us, surface, by_source, source)
            totals[*key, 0] += 1
            totals[*key, 1] += "click" in came
            totals[*key, 2] += "purchase" in came
    return {key: tuple(totals[*key, n] for n in range(3)) for key in {name[:-1] for name in totals}}


def batch_job(log: dict[tuple[str, int], list[dict[str, Any]]], windows: Hopping) -> dict[tuple[Any, ...], Any]:
    """As the lake would have the log: without repeats."""
    topics: dict[str, list[dict[str, Any]]] = {EVENTS: [], IMPRESSIONS: []}
    for (topic, _), rows in log.items():
        once = {row.get("event_id", place): row for place, row in reversed([*enumerate(rows)])}
        topics[topic] += once.values()
    tables = (
        pa.Table.from_pylist(topics[IMPRESSIONS], IMPRESSION_COLUMNS),
        pa.Table.from_pylist(topics[EVENTS], EVENT_COLUMNS),
    )
    found = fold_tables(*tables, SETTINGS, windows)
    return {
        (int(row["start"].timestamp()) * 1_000_000, row["surface"], row["by_source"], row["source"]): (
            row["impressions"],
            row["clicks"],
            row["conversions"],
        )
        for row in found.to_pylist()
    }


turns = st.lists(st.tuples(st.integers(0, 2 * PARTITIONS - 1), st.integers(1, 4)), min_size=8, max_size=16)


@settings(max_examples=60, deadline=None)
@given(messages, turns)
def test_figures_are_what_the_definition_says_in_any_interleaving(
    found: list[Message], at: list[tuple[int, int]]
) -> None:
    unique = [one for n, one in enumerate(found) if one.kind != "answer" or one.request not in _answered(found[:n])]
    log = rows_of(unique)
    held = folded(log, at)
    assert figures(held, HOURS) == plain(log, HOUR_US)
    assert figures(held, DAYS) == plain(log, DAY_US)
    for size in (HOUR_US, DAY_US, 7 * MINUTE):
        assert batch_job(log, tumbling(size)) == plain(log, size)
    at_once = folded(log, [])
    for family in (ITEMS, ITEM_HOURS):
        assert held.families[family] == at_once.families[family]
    assert len(held.families[DUE]) == len(held.families[ANSWERS])


def _answered(found: list[Message]) -> set[int]:
    return {one.request for one in found if one.kind == "answer"}
