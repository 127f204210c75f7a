"""An ingest that goes on after something has failed: what it had taken and not committed is taken again."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import pyarrow as pa
import pytest

from app.erasure.erased import Boundary, Entry, Erased, Salt, TopicEnd
from app.erasure.places import Subject
from app.errors import BrokerUnavailable
from app.events import topics
from app.events.blocks import ReadBlock, ReadFailed, block_hashes
from app.events.columns import EVENT_COLUMNS, RECORDS
from app.events.decode import decode_topic
from app.events.entities import ENTITY_COLUMNS
from app.events.ranges import OffsetRange, TopicBounds
from app.events.schema import EVENTS, ITEMS
from app.lake import compaction, follow, identities, ingest
from app.lake.commit import Progress, TopicOffsets, append, replace
from app.lake.data_files import one_file
from app.lake.erase import erase_rows
from app.lake.identities import KnownEvents
from app.lake.ingest import IngestJob, IngestReport
from app.lake.pace import Pace
from app.lake.snapshot import snapshot, snapshot_of
from app.lake.tables import open_lake
from app.settings import Settings

SETTINGS = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})  # nobody is asked
BOTH = (0, 1)


class Log:
    """Two partitions of events; `failures`: how often reading breaks off behind the first range."""

    def __init__(self, home: Path) -> None:
        self.lake = open_lake(SETTINGS, home)
        self.job = IngestJob(SETTINGS, self.lake, self.read)
        self.failures = 0

    def read(self, _: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
        for place, cut in enumerate(chunk):
            if place and self.failures:
                self.failures -= 1
                raise ReadFailed(BrokerUnavailable("gone"))
            offsets = range(cut.start, cut.end)
            events = [{"user_id": "u", "event_id": f"{cut.partition}-{n}", "event_type": "search"} for n in offsets]
            columns = [[cut.partition] * len(events), offsets, [0] * len(events), [b"u"] * len(events)]
            records = pa.table([*columns, [orjson.dumps(event) for event in events]], schema=RECORDS)
            decoded = decode_topic(cut.topic, records, SETTINGS.events)
            yield ReadBlock(decoded, block_hashes(cut.topic, decoded.events))

    def take(self, held: TopicBounds) -> None:
        with patch.object(ingest, "bounds", lambda *_: {EVENTS: held}):
            self.job.take(EVENTS)

    def ids(self) -> list[str]:
        return sorted(snapshot(self.lake, EVENTS).read(["event_id"])["event_id"].to_pylist())

    @property
    def offsets(self) -> TopicOffsets:
        return snapshot(self.lake, EVENTS).progress.topics[EVENTS]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.job.close()


def held(end: int) -> TopicBounds:
    return TopicBounds(EVENTS, "id", dict.fromkeys(BOTH, 0), dict.fromkeys(BOTH, end))


def test_an_outage_in_the_middle_of_a_commit_loses_nothing_of_what_was_read_before_it(log: Log) -> None:
    log.take(held(2))
    log.failures = 3
    with pytest.raises(BrokerUnavailable):
        log.take(held(4))
    assert len(log.ids()) == 4
    log.take(held(4))
    assert log.ids() == sorted(f"{part}-{offset}" for part in BOTH for offset in range(4))
    assert log.job.report.duplicates == 0


def test_dead_letters_that_cannot_be_written_lose_nothing_either(log: Log) -> None:
    log.take(held(2))
    with (
        patch.object(log.job._letters, "finish", side_effect=BrokerUnavailable("gone")),
        pytest.raises(BrokerUnavailable),
    ):
        log.take(held(4))
    log.take(held(4))
    assert len(log.ids()) == 8


def test_what_is_remembered_is_bounded_and_forgets_nothing_that_can_repeat(log: Log) -> None:
    known, table = KnownEvents(1000), log.lake.table(EVENTS)

    def fresh(names: str, arrival: int) -> str:
        """Those of the events, named by a letter each, that count; they are committed."""
        rows = [{"user_id": "u", "event_id": name, "event_type": "search", "event_time": 0} for name in names]
        more = {"record_time": arrival * 1000, "topic": EVENTS, "partition": 0, "offset": 0}
        found = pa.Table.from_pylist([row | more for row in rows], EVENT_COLUMNS)
        hashes = block_hashes(EVENTS, found)
        assert hashes is not None
        before = snapshot_of(EVENTS, table)
        kept = known.fresh(found, hashes, before)
        append(table, kept, Progress({EVENTS: TopicOffsets("id", {0: 1})}), max_open_partitions=9)
        known.committed(before, snapshot_of(EVENTS, table))
        return "".join(kept["event_id"].to_pylist())

    with patch.object(identities, "_REMEMBERED", 3):
        assert fresh("abcdef", 5000) == "abcdef"
        assert fresh("g", 5800) == "g"
        assert fresh("ah", 5999) == "h"
        assert fresh("bi", 6000) == "bi"  # the horizon has passed
        assert fresh("j", 7500) == "j"
        assert len(known) == 1  # all else is too old for what comes at that time
        assert fresh("bck", 6990) == "ck"  # an arrival that is late: read again from the lake
        assert fresh("bck", 6995) == ""
    known.close()


def test_offsets_outlive_a_topic_or_partition_that_the_broker_does_not_name(log: Log) -> None:
    log.take(held(3))
    log.take(TopicBounds(EVENTS, ""))
    assert log.offsets == TopicOffsets("id", dict.fromkeys(BOTH, 3))
    log.take(TopicBounds(EVENTS, "id", {0: 0}, {0: 4}))
    assert log.offsets == TopicOffsets("id", {0: 4, 1: 3})


def test_who_was_erased_stays_out_also_where_the_erasure_comes_while_it_is_read(tmp_path: Path) -> None:
    """An erasure clears the lake of what is there; ingest, which has read more meanwhile, must not bring it back."""
    salt = Salt(b"salt")
    ends = {EVENTS: TopicEnd("id", dict.fromkeys(BOTH, 6))}
    known = [Erased(salt, ())]
    log = Log(tmp_path)
    log.job.close()
    log.job = IngestJob(SETTINGS, log.lake, log.read, erased=lambda: known[0])

    def read(settings: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
        yield from log.read(settings, chunk)
        if len(known[0]):
            return
        known[0] = Erased(salt, [Entry(frozenset({salt.key("user", "u")}), Boundary(0, ends))])
        erase_rows(log.lake, EVENTS, Subject("e", "u", (), 0, ends))

    try:
        log.take(held(2))
        log.job._read_chunk = read
        log.take(held(8))
    finally:
        log.job.close()
    assert log.ids() == sorted(f"{part}-{offset}" for part in BOTH for offset in (6, 7))
    assert (log.job.report.lost_commits, log.job.report.erased) == (1, 8)
    assert log.offsets.next == dict.fromkeys(BOTH, 8)


def test_a_topic_of_which_the_broker_does_not_tell_is_not_taken_for_missing() -> None:
    class Admin:
        def describe_topics(self, names: Sequence[str]) -> list[dict[str, Any]]:
            return [
                {"name": name, "error_code": code, "partitions": []} for name, code in zip(names, (3, 29), strict=False)
            ]

    @contextmanager
    def administration(_: object) -> Iterator[Admin]:
        yield Admin()

    with patch.object(topics, "administration", administration):
        assert not topics.bounds(SETTINGS.kafka, ["missing"])["missing"].exists
        with pytest.raises(BrokerUnavailable, match="topic events: TopicAuthorizationFailedError"):
            topics.bounds(SETTINGS.kafka, ["missing", EVENTS])


def test_commits_go_on_while_it_compacts_and_neither_loses_to_the_other(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    merging, go_on, stop, end = threading.Event(), threading.Event(), threading.Event(), [2]

    def slow(*asked: Any) -> Any:
        merging.set()
        assert go_on.wait(120)
        return one_file(*asked)

    def bounds(_: object, names: Sequence[str]) -> dict[str, TopicBounds]:
        return {topic: held(end[0]) if topic == EVENTS else TopicBounds(topic, "") for topic in names}

    monkeypatch.setattr(compaction, "one_file", slow)
    monkeypatch.setattr(follow, "read_here", log.read)
    for module in (follow, ingest):
        monkeypatch.setattr(module, "bounds", bounds)
    settings = SETTINGS.model_copy(
        update={"ingest": SETTINGS.ingest.model_copy(update={"follow_s": 0.01, "follow_upkeep": 2})}
    )
    report = IngestReport()
    log.take(held(1))
    thread = threading.Thread(target=follow.follow, args=(settings, log.lake, report, stop.wait))
    thread.start()
    try:
        while not merging.is_set():
            _until(lambda: log.offsets.next == dict.fromkeys(BOTH, end[0]))
            end[0] += 1
        for _ in range(3):
            _until(lambda: log.offsets.next == dict.fromkeys(BOTH, end[0]))
            end[0] += 1
        go_on.set()
        _until(
            lambda: "replace" in [one.summary.operation.value for one in snapshot(log.lake, EVENTS).source.snapshots()]
        )
    finally:
        go_on.set()
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert log.ids() == sorted(f"{part}-{offset}" for part in BOTH for offset in range(log.offsets.next[0]))
    assert report.lost_commits == report.duplicates == 0


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_table_that_is_written_anew_is_not_written_more_often_than_its_size_allows(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    class Job:
        def take(self, topic: str) -> None:
            taken.append(topic)
            rows = [{"item_id": str(number), "columns": "{}"} for number in range(len(taken))]
            if topic == ITEMS:
                replace(log.lake.table(ITEMS), pa.Table.from_pylist(rows, ENTITY_COLUMNS[ITEMS]), Progress())

    seconds, end = [1000.0], [0]
    monkeypatch.setattr(
        follow, "bounds", lambda _, names: {topic: TopicBounds(topic, "", {0: 0}, {0: end[0]}) for topic in names}
    )
    kept, seen = Pace(log.lake, 1000, lambda: seconds[0]), dict[str, TopicBounds]()

    def goes(later_s: float) -> list[str]:
        nonlocal seen
        taken.clear()
        seconds[0], end[0] = seconds[0] + later_s, end[0] + 1
        seen = follow._round(Job(), SETTINGS, seen, lambda _: False, nullcontext(), kept)  # type: ignore[arg-type]
        return list(taken)

    assert goes(0) == list(ingest.TOPICS)
    size_s = sum(part.bytes for part in snapshot(log.lake, ITEMS).files()) / 1000
    assert size_s > 1
    assert goes(size_s / 2) == [topic for topic in ingest.TOPICS if topic != ITEMS]
    end[0] -= 1  # nothing more comes: what waits is not forgotten
    assert goes(size_s) == [ITEMS]


def test_an_event_of_a_clock_that_is_years_ahead_makes_nobody_read_the_lake_again(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def accepted(_: object, from_ms: int, before_ms: int | None) -> Iterator[Any]:
        asked.append(from_ms)
        return iter(())

    monkeypatch.setattr(identities, "accepted_events", accepted)
    known, now_ms = KnownEvents(1000), int(time.time() * 1000)
    stood = snapshot(log.lake, EVENTS)
    for place, arrived in enumerate((now_ms + 5 * 365 * 86_400_000, now_ms - 60_000)):
        row = {"user_id": "u", "event_id": str(place), "record_time": arrived * 1000, "partition": 0, "offset": place}
        found = pa.Table.from_pylist([row], EVENT_COLUMNS)
        hashes = block_hashes(EVENTS, found)
        assert hashes is not None
        assert len(known.fresh(found, hashes, stood)) == 1
    (from_ms,) = asked
    assert from_ms <= int(time.time() * 1000) - 1000
