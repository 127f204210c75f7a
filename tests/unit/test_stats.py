"""The live figures on disk: one write for figures and offsets, late rows, trending lists, and what a reader sees."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from app.errors import StateUnavailable
from app.events.columns import EVENT_COLUMNS
from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import EVENTS, IMPRESSIONS
from app.settings import Settings
from app.stats.batch import StatsBatch
from app.stats.counters import DAY_US, HOUR_US
from app.stats.fold import StatsFold
from app.stats.held import ANSWERS, DAYS, HOURS, ITEMS, META, SEEN, Changes, Draft, MemoryHeld
from app.stats.identities import Identities
from app.stats.reader import Bucket, StatsReader
from app.stats.store import RocksHeld, StatsPaths

MINUTE = 60_000_000
MONDAY = 20_000 * DAY_US - (20_000 * DAY_US - 4 * DAY_US) % (7 * DAY_US)
NOW = MONDAY + 400 * DAY_US
SETTINGS = Settings.model_validate(
    {
        "stats": {"allowed_lateness_s": 1200, "attribution_s": 2400, "trending_hours": [2, 6]},
        "surfaces": {"home": {}, "mail": {"impressions": "posted"}},
    }
)


class Log:
    """Makes batches: rows of the two topics on partition 0."""

    def __init__(self) -> None:
        self.ends = {EVENTS: 0, IMPRESSIONS: 0}

    def batch(self, *rows: dict[str, Any]) -> StatsBatch:
        found: dict[str, list[dict[str, Any]]] = {EVENTS: [], IMPRESSIONS: []}
        for row in rows:
            topic = IMPRESSIONS if "items" in row else EVENTS
            place = {"partition": 0, "offset": self.ends[topic], "record_time": NOW}
            found[topic].append({"event_id": f"e{self.ends[topic]}", "user_id": "u"} | row | place)
            self.ends[topic] += 1
        return StatsBatch(
            pa.Table.from_pylist(found[EVENTS], EVENT_COLUMNS),
            pa.Table.from_pylist(found[IMPRESSIONS], IMPRESSION_COLUMNS),
            {(topic, 0): end for topic, end in self.ends.items()},
            partitions=[(topic, 0) for topic in self.ends],
        )


def answer(minute: float, request: str, surface: str = "home", items: str = "ab") -> dict[str, Any]:
    shown = [{"item_id": item, "position": n, "sources": ["ease"]} for n, item in enumerate(items, 1)]
    time_us = MONDAY + int(minute * MINUTE)
    return {
        "request_id": request,
        "surface": surface,
        "variant": "champion",
        "bundle": "b1",
        "time": time_us,
        "items": shown,
    }


def event(minute: float, item: str = "a", kind: str = "click", **more: Any) -> dict[str, Any]:
    return {"item_id": item, "event_type": kind, "event_time": MONDAY + int(minute * MINUTE), **more}


def shapes(buckets: list[Bucket]) -> list[tuple[Any, ...]]:
    return [
        ((one.start - MONDAY) // HOUR_US, one.figure.surface, one.figure.source, one.figure.counts, one.final)
        for one in buckets
    ]


def test_a_reader_sees_hours_days_weeks_and_sources(tmp_path: Path) -> None:
    held, log = RocksHeld(StatsPaths(tmp_path).database), Log()
    reader = StatsReader(SETTINGS.stats, tmp_path, "test")
    fold = StatsFold(held, SETTINGS)
    fold.apply(
        log.batch(
            answer(10, "r1"),
            event(11, "b", request_id="r1"),
            event(11.5, "b", request_id="r1"),  # one impression, one click
            event(12, "c", request_id="r1"),  # was not shown
            event(13, "a", "purchase", request_id="r1"),
            event(14, "a"),  # a reaction to nothing
        ),
        now_us=NOW,
    )
    fold.apply(log.batch(answer(70, "r2", "mail"), event(71, "a", "impression", request_id="r2")), now_us=NOW)
    fold.apply(log.batch(answer(25 * 60, "r3"), event(24 * 60 + 59, request_id="r3")), now_us=NOW)
    span = (MONDAY, MONDAY + 3 * DAY_US)
    assert shapes(reader.figures(*span, "hour", surface=None, by_source=False)) == [
        (0, "home", None, (2, 1, 1), True),
        (1, "mail", None, (1, 0, 0), True),
        (25, "home", None, (2, 1, 0), False),
    ]
    assert shapes(reader.figures(*span, "day", surface="home", by_source=True)) == [
        (0, "home", "ease", (2, 1, 1), False),
        (24, "home", "ease", (2, 1, 0), False),
    ]
    assert shapes(reader.figures(span[0] + DAY_US, span[1], "week", surface="home", by_source=False)) == [
        (0, "home", None, (4, 2, 1), False)
    ]
    assert fold.late["unattributed"] == 1
    fold.apply(log.batch(event(90 * 24 * 60 + 600)), now_us=NOW)
    time.sleep(0.11)
    assert reader.figures(*span, "hour", surface=None, by_source=False) == []  # kept for a week
    assert len(reader.figures(*span, "day", surface=None, by_source=False)) == 3
    assert reader.kept_from("hour", reader.progress()) == MONDAY + 90 * DAY_US + 10 * HOUR_US - 168 * HOUR_US
    fold.apply(log.batch(answer(101 * 24 * 60, "r4")), now_us=NOW)  # answers go on where nobody reacts
    time.sleep(0.11)
    assert reader.kept_from("hour", reader.progress()) == MONDAY + 101 * DAY_US - 168 * HOUR_US
    assert reader.figures(*span, "day", surface=None, by_source=False) == []
    reader.close()
    held.close()


def test_without_a_writer_there_are_no_figures(tmp_path: Path) -> None:
    reader = StatsReader(SETTINGS.stats, tmp_path, "test")
    with pytest.raises(StateUnavailable, match="no live figures yet"):
        reader.progress()
    held = RocksHeld(StatsPaths(tmp_path).database)
    with pytest.raises(StateUnavailable, match="lock"):
        RocksHeld(StatsPaths(tmp_path).database)
    assert reader.progress().watermark is None
    assert reader.trending("home")["items"] == []
    held.close()


def test_what_came_too_late_is_counted_and_a_record_lives_as_long_as_anything_may_count() -> None:
    held, log = MemoryHeld(), Log()
    fold = StatsFold(held, SETTINGS)
    fold.apply(log.batch(answer(0, "r1"), answer(50, "r2", items="x"), event(50, kind="look")), now_us=NOW)
    fold.apply(log.batch(event(40, request_id="r1")), now_us=NOW)  # ten minutes late, within both windows
    assert [value for value in _clicks(held) if value] == [1]
    fold.apply(log.batch(answer(61, "r3", items="x"), event(61, kind="look")), now_us=NOW)
    fold.apply(log.batch(event(40, "b", request_id="r1"), answer(40, "r4")), now_us=NOW)  # later than twenty minutes
    assert fold.late == {EVENTS: 1, IMPRESSIONS: 1, "unattributed": 0}
    assert held.get(ANSWERS, [b"r1"]) != [None]  # its click at 40 may be followed by another one
    fold.apply(log.batch(answer(102, "r5", items="x"), event(102, kind="look")), now_us=NOW)
    fold.apply(log.batch(), now_us=NOW)
    assert held.get(ANSWERS, [b"r1", b"r4"]) == [None, None]
    assert [value for value in _clicks(held) if value] == [1]


def test_a_reaction_that_counts_for_no_impression_is_counted_as_unmatched() -> None:
    held, log = MemoryHeld(), Log()
    fold = StatsFold(held, SETTINGS)
    shown = [answer(0, "r1"), answer(0, "m1", surface="mail")]
    told = [event(0, "a", "impression", request_id="m1", surface="mail"), event(1, "a", request_id="r1")]
    unmatched = [
        event(1, "a", request_id="never"),
        event(1, "z", request_id="r1"),  # not in the answer
        event(1, "b", request_id="m1"),  # never posted as shown
        event(45, "b", request_id="r1"),  # beyond forty minutes
    ]
    fold.apply(log.batch(*shown, *told, *unmatched), now_us=NOW)
    fold.apply(log.batch(answer(200, "r2"), event(200, kind="look")), now_us=NOW)
    fold.apply(log.batch(), now_us=NOW)
    assert held.get(ANSWERS, [b"r1", b"m1", b"never"]) == [None] * 3
    assert fold.late["unmatched"] == len(unmatched)
    assert sum(_clicks(held)) == 1


def _clicks(held: MemoryHeld) -> list[int]:
    from app.stats.counters import read_figure

    found = [read_figure(*pair) for pair in held.families["days"].items()]
    return [one.counts[1] for one in found if not one.by_source]


def test_a_write_that_fails_changes_nothing_and_is_done_again() -> None:
    class Failing(MemoryHeld):
        broken: bool = True

        def write(self, changes: Changes) -> None:
            if self.broken:
                raise OSError("no space left")
            super().write(changes)

    held, log = Failing(), Log()
    batch = log.batch(answer(0, "r1"), event(1, request_id="r1"))
    with pytest.raises(OSError, match="no space"):
        StatsFold(held, SETTINGS).apply(batch, now_us=NOW)
    Failing.broken = False
    for _ in range(2):  # the second time everything has been applied already
        fold = StatsFold(held, SETTINGS)
        fold.apply(batch, now_us=NOW)
        assert fold.offsets() == {EVENTS: {0: 1}, IMPRESSIONS: {0: 1}}
        assert _clicks(held) == [1]
        assert fold.totals["events"] == 1


def test_figures_identities_and_offsets_are_one_write() -> None:
    """What is held is written whole or not at all: a crash between two writes would count twice, or lose."""
    written: list[Changes] = []

    class Noting(MemoryHeld):
        def write(self, changes: Changes) -> None:
            written.append(changes)
            super().write(changes)

    log = Log()
    StatsFold(Noting(), SETTINGS).apply(log.batch(answer(0, "r1"), event(1, request_id="r1")), now_us=NOW)
    (changes,) = written
    assert {HOURS, DAYS, ANSWERS, SEEN, META, ITEMS} <= set(changes)


def test_a_reaction_changes_no_final_window_even_where_its_record_still_lives() -> None:
    """A partition that was silent brings it, from just behind what is final, to what was shown just before that."""
    held, log = MemoryHeld(), Log()
    fold = StatsFold(held, SETTINGS)
    both = [(EVENTS, 0), (IMPRESSIONS, 0)]
    fold.apply(log.batch(answer(50, "r1", items="ab"), answer(125, "r2")), now_us=NOW)
    fold.apply(log.batch(event(70, "b", request_id="r1")), now_us=NOW)
    fold.apply(StatsBatch(partitions=both, idle=[(EVENTS, 0)]), now_us=NOW)
    assert fold.final_beyond_lake() == {HOURS: MONDAY + HOUR_US, DAYS: MONDAY}  # 125 minutes less an hour's margin
    before = held.families[HOURS].copy()
    assert held.get(ANSWERS, [b"r1"]) != [None]
    fold.apply(log.batch(event(72, "a", request_id="r1")), now_us=NOW)
    assert held.families[HOURS] == before
    assert sum(_clicks(held)) == 2  # the day is open
    assert fold.late[EVENTS] == 0


def test_what_repeats_counts_once_but_not_what_has_no_id_of_its_own() -> None:
    """As in lake and state: an event named by its place is another one in a topic that was made anew."""
    held, log = MemoryHeld(), Log()
    fold = StatsFold(held, SETTINGS)
    fold.apply(
        log.batch(event(0, event_id="x"), event(1, event_id="x"), event(2, event_id=f"{EVENTS}/0/2")), now_us=NOW
    )
    assert fold.totals["duplicates"] == 1
    fold._offsets[EVENTS] = {0: 0}
    again = Log()
    fold.apply(again.batch(event(0, event_id="x"), event(1), event(3, event_id=f"{EVENTS}/0/2")), now_us=NOW)
    assert fold.totals["duplicates"] == 2
    fold.list_trending()
    assert fold._trending.lists(held, MONDAY)["home"]["items"] == [["a", 4.0, 4]]


def test_an_identity_counts_again_after_the_horizon_and_is_kept_for_twice_as_long() -> None:
    """As lake and state have it (`tests/property/test_dedup.py`)."""
    held, identities = MemoryHeld(), Identities(1000)

    def repeats(*arrivals: int) -> list[bool]:
        rows = [{"user_id": "u", "event_id": "x", "record_time": at * 1000, "offset": at} for at in arrivals]
        draft = Draft(held)
        found: list[bool] = identities.repeats(pa.Table.from_pylist(rows, EVENT_COLUMNS), draft).tolist()
        draft.write()
        return found

    assert repeats(5000, 5999) == [False, True]
    assert repeats(4001, 4000, 6000) == [True, False, False]
    assert [identities.forget(held, now) for now in (8000, 8001)] == [0, 1]
    assert repeats(6000) == [False]


def test_a_time_beyond_now_moves_no_watermark_further_than_events_may_be_ahead() -> None:
    held, log, now_us = MemoryHeld(), Log(), MONDAY + 5 * MINUTE
    fold = StatsFold(held, SETTINGS)
    fold.apply(log.batch(event(600, "far"), event(4)), now_us=now_us)
    assert fold.progress.as_of == now_us + int(SETTINGS.events.max_future_s) * 1_000_000
    assert fold.late[EVENTS] == 0


def test_rows_of_a_clock_that_is_years_ahead_are_in_no_figure_and_end_no_window() -> None:
    held, log, now_us = MemoryHeld(), Log(), MONDAY + 60 * MINUTE
    years = 5 * 365 * 24 * 60
    plain = StatsFold(MemoryHeld(), SETTINGS)
    plain.apply(Log().batch(answer(1, "r1"), event(4, request_id="r1")), now_us=now_us)
    fold = StatsFold(held, SETTINGS)
    fold.apply(log.batch(event(years, "far"), answer(years, "r9")), now_us=now_us)
    fold.apply(log.batch(answer(1, "r1"), event(4, request_id="r1")), now_us=now_us)
    assert fold.progress == plain.progress
    assert {name: count for name, count in fold.late.items() if count} == {"ahead": 2}
    for family in (HOURS, DAYS, ANSWERS, ITEMS):
        assert held.families[family] == plain._held.families[family], family  # type: ignore[attr-defined]


def test_trending_is_the_newest_window_filled_from_longer_ones_and_from_all_time() -> None:
    held, log = MemoryHeld(), Log()
    fold = StatsFold(held, SETTINGS)
    hour = 60
    old = [event(0, "old"), event(1, "old"), event(2, "older")]
    week = [event(7 * hour, "recent", surface="home"), event(7 * hour, "recent", event_id="e3")]  # one is a repeat
    now = [event(10 * hour, item) for item in ("a", "b", "b")] + [event(10 * hour, "m", surface="mail")]
    fold.apply(log.batch(*old, *week, *now, event(10 * hour, "z", "look"), event(8 * hour, "late")), now_us=NOW)
    fold.list_trending()
    lists = StatsFold(held, SETTINGS)._trending.lists(held, MONDAY + 10 * hour * MINUTE)
    assert lists["home"] == {
        "start": MONDAY + 9 * HOUR_US,
        "end": MONDAY + 11 * HOUR_US,
        "items": [
            ["b", 2.0, 2],
            ["a", 1.0, 1],
            ["recent", 0.0, 0],
            ["old", 0.0, 0],
            ["late", 0.0, 0],
            ["older", 0.0, 0],
        ],
    }
    assert [item for item, *_ in lists["mail"]["items"]] == ["b", "a", "m", "old", "late", "older"]
    assert fold.late[EVENTS] == 1


def test_a_silent_partition_holds_nothing_back_and_changes_nothing_that_is_final() -> None:
    held, log = MemoryHeld(), Log()
    fold = StatsFold(held, SETTINGS)
    both = [(EVENTS, 0), (IMPRESSIONS, 0)]
    fold.apply(log.batch(answer(0, "r1"), answer(300, "r2")), now_us=NOW)
    assert (fold.progress.watermark, fold.progress.complete) == (MONDAY + 300 * MINUTE, None)
    assert not fold.held_back_by(both, [])
    assert fold.held_back_by(both, both)
    fold.apply(StatsBatch(partitions=both, idle=both), now_us=NOW)
    assert fold.progress.complete == MONDAY + 300 * MINUTE
    assert not fold.held_back_by(both, both)
    assert held.get(ANSWERS, [b"r1"]) == [None]
    more = (event(1, request_id="r1"), event(2, "a", "impression", request_id="r9", surface="mail"))
    fold.apply(log.batch(*more, event(290, request_id="r2")), now_us=NOW)
    assert fold.late[EVENTS] == 2
    assert _clicks(held) == [1]
    assert [one for one in fold._trending.lists(held, MONDAY)["home"]["items"] if one[2]] == [["a", 1.0, 1]]  # in time
