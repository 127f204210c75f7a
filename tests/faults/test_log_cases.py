"""What a log can do to its reader, on Apache Kafka: read to the end, or named; never skipped, never doubled."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer
from kafka.admin import ConfigResource, ConfigResourceType

from app.errors import GapError, MantaError
from app.events.blocks import ReadBlock, read_here
from app.events.dead_letters import read_dead_letters, topic_id_of
from app.events.ranges import OffsetRange
from app.events.replay import Choice, replay_dead_letters
from app.events.schema import EVENTS, ITEMS
from app.events.topics import administration, bounds, ensure_topics
from app.lake.follow import follow
from app.lake.ingest import IngestJob, IngestReport
from app.lake.snapshot import snapshot
from app.settings import Settings
from deployments.retention import measure_here
from scripts import apache_kafka
from tests.faults.world import World

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def broker(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a broker that a test may end and start again."""
    folder = tmp_path_factory.mktemp("kafka")
    apache_kafka.start(folder)
    yield folder
    apache_kafka.end(folder, signal.SIGKILL)


@pytest.fixture
def world(broker: Path, tmp_path: Path) -> World:
    """A new lake; every topic made anew."""
    port = re.search(r"PLAINTEXT://(127\.0\.0\.1:\d+)", (broker / "server.properties").read_text())
    assert port is not None
    made = World.of(port[1], tmp_path)
    remake(made)
    return made


def remake(world: World, topics: Sequence[str] = (EVENTS, ITEMS)) -> None:
    """Deletes topics, and makes what is missing."""
    with administration(world.settings.kafka) as admin:
        there = set(admin.list_topics())
        if gone := [topic for topic in topics if topic in there]:
            admin.delete_topics(gone)
    until(lambda: not any(one.exists for one in bounds(world.settings.kafka, topics).values()))
    ensure_topics(world.settings.kafka)


def configure(world: World, topic: str, **values: str) -> None:
    named = {name.replace("_", "."): value for name, value in values.items()}
    with administration(world.settings.kafka) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, named)])


def produce(world: World, names: Sequence[str], *, partition: int = 0, age_ms: int = 0, **fields: object) -> None:
    """One event of user `u` a name, into one partition, with an arrival so long ago; "" is an event without id."""
    producer = Producer({"bootstrap.servers": world.settings.kafka.bootstrap_servers})
    for name in names:
        event = {"user_id": "u", "item_id": "i", "event_type": "click"} | fields | ({"event_id": name} if name else {})
        now = int(time.time() * 1000) - age_ms
        producer.produce(EVENTS, orjson.dumps(event), b"u", partition=partition, timestamp=now)
    assert producer.flush(20) == 0


def names(world: World) -> list[str]:
    return sorted(snapshot(world.lake, EVENTS).read(["event_id"])["event_id"].to_pylist())


def test_a_log_that_ends_with_an_aborted_transaction_or_holds_nothing_else(world: World) -> None:
    producer = Producer({"bootstrap.servers": world.settings.kafka.bootstrap_servers, "transactional.id": "cases"})
    producer.init_transactions(30)
    for partition, commits in ((0, True), (0, False), (1, False)):
        producer.begin_transaction()
        for number in range(10):
            event = {"user_id": "u", "event_id": f"{commits}{number}", "item_id": "i", "event_type": "click"}
            producer.produce(EVENTS, orjson.dumps(event), b"u", partition=partition)
        producer.flush(10)
        producer.commit_transaction(30) if commits else producer.abort_transaction(30)
    world.ingest_here()
    assert names(world) == [f"True{number}" for number in range(10)]
    held = bounds(world.settings.kafka, [EVENTS])[EVENTS]
    assert snapshot(world.lake, EVENTS).progress.topics[EVENTS].next == held.end == {0: 22, 1: 11, 2: 0}
    assert world.ingest_here().commits == 0


def test_a_transaction_that_is_open_is_waited_for_and_not_passed_over(world: World) -> None:
    open_one = Producer({"bootstrap.servers": world.settings.kafka.bootstrap_servers, "transactional.id": "open"})
    open_one.init_transactions(30)
    open_one.begin_transaction()
    open_one.produce(EVENTS, b'{"user_id":"u","event_id":"open","item_id":"i","event_type":"click"}', partition=0)
    open_one.flush(10)
    produce(world, ["behind"])
    world.ingest_here()
    assert names(world) == []
    open_one.commit_transaction(30)
    world.ingest_here()
    assert names(world) == ["behind", "open"]


def test_holes_of_compaction_are_passed(world: World) -> None:
    quick = {"segment_ms": "500", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "1000"}
    configure(world, ITEMS, **quick)
    producer = Producer({"bootstrap.servers": world.settings.kafka.bootstrap_servers})

    def put(name: str, year: int) -> None:
        producer.produce(ITEMS, orjson.dumps({"year": year}), name.encode(), partition=0)
        assert producer.flush(10) == 0

    for year in range(300):
        put(str(year % 3), year)
    deadline = time.monotonic() + 40
    # One message more rolls the segment; then only the last versions are left of what lay before
    while time.monotonic() < deadline and _messages(world, ITEMS) > 100:
        time.sleep(0.7)
        put("roll", int(deadline - time.monotonic()))
    assert _messages(world, ITEMS) <= 100, "the broker has not compacted"
    world.ingest_here()
    rows = {row["item_id"]: row["columns"] for row in snapshot(world.lake, ITEMS).read().to_pylist()}
    assert {name: rows[name] for name in "012"} == {"0": '{"year":297}', "1": '{"year":298}', "2": '{"year":299}'}
    end = bounds(world.settings.kafka, [ITEMS])[ITEMS].end[0]
    assert snapshot(world.lake, ITEMS).progress.topics[ITEMS].next[0] == end >= 300


def _messages(world: World, topic: str) -> int:
    """How many messages partition 0 still holds."""
    end = bounds(world.settings.kafka, [topic])[topic].end[0]
    blocks = read_here(world.settings, [OffsetRange(topic, 0, 0, end)])
    return sum(len(block.decoded.events) for block in blocks)


def test_empty_partitions_are_known_and_read_once_they_are_not(world: World) -> None:
    produce(world, ["a"], partition=1)
    world.ingest_here()
    assert snapshot(world.lake, EVENTS).progress.topics[EVENTS].next == {0: 0, 1: 1, 2: 0}
    produce(world, ["b"], partition=2)
    world.ingest_here()
    assert names(world) == ["a", "b"]


def test_partitions_that_are_added_while_it_follows_are_read_from_their_beginning(world: World) -> None:
    settings = world.settings.model_copy(
        update={
            "ingest": world.settings.ingest.model_copy(update={"follow_s": 0.3, "follow_rows": 50, "follow_upkeep": 1})
        }
    )
    stop, report = threading.Event(), IngestReport()
    thread = threading.Thread(target=follow, args=(settings, world.lake, report, stop.wait))
    thread.start()
    try:
        produce(world, [f"a{number:03}" for number in range(120)])
        until(lambda: len(names(world)) == 120)
        with administration(world.settings.kafka) as admin:
            admin.create_partitions({EVENTS: 5})
        until(lambda: len(bounds(world.settings.kafka, [EVENTS])[EVENTS].end) == 5)
        produce(world, ["b"], partition=4)
        until(lambda: "b" in names(world))
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert snapshot(world.lake, EVENTS).progress.topics[EVENTS].next == {0: 120, 1: 0, 2: 0, 3: 0, 4: 1}
    summaries = [one.summary for one in snapshot(world.lake, EVENTS).source.snapshots()]
    appended = [int(one["added-records"] or 0) for one in summaries if one.operation.value == "append"]
    assert max(appended) <= 50
    assert "replace" in [one.operation.value for one in summaries], "the lake was not kept up"
    assert report.rows[EVENTS] == 121


def until(true: Callable[[], bool], seconds: float = 40) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def test_a_topic_made_anew_with_smaller_offsets_is_named_and_read_whole_once_that_is_accepted(world: World) -> None:
    earlier = bounds(world.settings.kafka, [EVENTS])[EVENTS].topic_id
    future = "2090-01-01T00:00:00Z"
    produce(world, [""])
    produce(world, [""], event_time=future)
    world.ingest_here()
    before = snapshot(world.lake, EVENTS)
    remake(world, [EVENTS])
    produce(world, [""])
    produce(world, [""], partition=1)
    produce(world, ["", ""], event_time=future)  # the first at the place of the one before
    with pytest.raises(GapError, match=r"topic events, partition 0: .*the topic was made anew: its id was"):
        world.ingest_here()
    assert snapshot(world.lake, EVENTS).id == before.id
    report = world.ingest_here(accept_gap=True)
    # Events without an id are named by their place: at the same place of another topic stands another event
    assert (report.rows[EVENTS], report.duplicates) == (2, 0)
    letters = [letter for letter in read_dead_letters(world.settings.kafka) if letter["reason"] == "future"]
    now = snapshot(world.lake, EVENTS)
    assert now.progress.topics[EVENTS].topic_id == bounds(world.settings.kafka, [EVENTS])[EVENTS].topic_id
    assert {gap["partition"] for gap in now.progress.gaps} == {0, 1, 2}
    # The same holds for dead letters: none hides another, and each comes back once as an event of its own
    topic_id = now.progress.topics[EVENTS].topic_id
    assert [(topic_id_of(one), one["offset"]) for one in letters] == [(earlier, 1), (topic_id, 1), (topic_id, 2)]
    mended = Settings.model_validate(world.settings.model_dump() | {"events": {"max_future_s": 4e9}})
    assert [replay_dead_letters(mended, Choice()).replayed for _ in range(2)] == [3, 0]
    job = IngestJob(mended, world.lake, read_here)
    job.take(EVENTS)
    job.close()
    assert (job.report.rows[EVENTS], job.report.duplicates) == (3, 0)
    back = snapshot(world.lake, EVENTS).read(["event_id", "offset"]).to_pylist()
    assert {row["event_id"] for row in back if row["offset"] > 2} == {
        f"events/0/1@{earlier}",
        "events/0/1",
        "events/0/2",
    }


def test_a_leader_that_goes_away_in_the_middle_is_waited_for(world: World, broker: Path) -> None:
    wanted = [f"e{number:05}" for number in range(2000)]
    for partition in range(3):
        produce(world, wanted[partition::3], partition=partition)
    threads: list[threading.Thread] = []

    def restart() -> None:
        time.sleep(2)
        apache_kafka.start(broker)

    def read(settings: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
        for place, block in enumerate(read_here(settings, chunk)):
            yield block
            if place == 0 and not threads:
                assert apache_kafka.end(broker, signal.SIGKILL)
                threads.append(threading.Thread(target=restart))
                threads[0].start()

    job = IngestJob(world.settings, world.lake, read)
    try:
        for _ in range(20):
            try:
                job.take(EVENTS)
                break
            except MantaError:  # between chunks the bounds are asked for: the next run goes on
                time.sleep(1)
    finally:
        job.close()
        threads[0].join()
    assert names(world) == sorted(wanted)


def test_a_log_that_ends_below_what_was_read_is_named_and_what_stands_there_then_is_read(
    world: World, broker: Path
) -> None:
    for batch in range(10):
        produce(world, [f"old{batch}{number}" for number in range(10)])
    world.ingest_here()
    before = names(world)
    apache_kafka.end(broker, signal.SIGKILL)
    log = broker / "data" / f"{EVENTS}-0" / "00000000000000000000.log"
    with log.open("r+b") as file:  # as an unclean broker: half of what it had acknowledged is gone
        file.truncate(log.stat().st_size // 2)
    apache_kafka.start(broker)
    held = bounds(world.settings.kafka, [EVENTS])[EVENTS]
    assert 0 < held.end[0] < 100
    with pytest.raises(GapError, match=r"the log ends below what was read") as caught:
        world.ingest_here()
    assert (caught.value.wanted, caught.value.gap.start, caught.value.gap.end) == (100, held.end[0], 100)
    produce(world, ["new", ""])
    report = world.ingest_here(accept_gap=True)
    # What was written before it was noticed lies below the offset that was read: it is lost, and that is what is noted
    assert report.gaps[0]["from"] == held.end[0] + 2
    produce(world, ["newer", ""])
    assert world.ingest_here().rows[EVENTS] == 2
    assert set(before) < set(names(world))


def test_what_retention_has_deleted_is_named_with_its_time_span(world: World) -> None:
    produce(world, ["first"], age_ms=5 * HOUR_MS)
    world.ingest_here()
    stood = snapshot(world.lake, EVENTS)
    produce(world, ["lost1", "lost2"], age_ms=3 * HOUR_MS)
    segments = {"segment_ms": "1000"}
    configure(world, EVENTS, retention_ms=str(4 * HOUR_MS), **segments)
    measured = {(row["reader"], row["topic"]): row for row in measure_here(world.settings, world.home)["readers"]}
    row = measured["lake", EVENTS]
    assert (row["unread"], row["partition"], row["alarm"]) == (2, 0, True)
    assert row["hours_by_time"] == pytest.approx(1.0, abs=0.05)
    assert row["hours_by_bytes"] is None
    time.sleep(1.2)
    produce(world, ["kept"], age_ms=HOUR_MS)
    configure(world, EVENTS, retention_ms=str(2 * HOUR_MS), **segments)
    until(lambda: bounds(world.settings.kafka, [EVENTS])[EVENTS].first[0] == 3)
    with pytest.raises(GapError) as caught:
        world.ingest_here()
    text = str(caught.value)
    assert (
        "topic events, partition 0: offset 1 should be read next, but the log holds 3 to 3: 1 to 2 are missing" in text
    )
    times = re.search(r"which arrived after (\S+)Z and before (\S+)Z \(retention has deleted", text)
    assert times is not None
    assert snapshot(world.lake, EVENTS).id == stood.id
    report = world.ingest_here(accept_gap=True)
    (gap,) = report.gaps
    assert (gap["from"], gap["to"], gap["after"], gap["before"]) == (1, 3, f"{times[1]}Z", f"{times[2]}Z")
    assert names(world) == ["first", "kept"]
    assert snapshot(world.lake, EVENTS).progress.gaps == (gap,)


def test_how_near_retention_by_bytes_is(world: World) -> None:
    years_ms = 5 * 365 * 24 * HOUR_MS
    configure(
        world, EVENTS, retention_ms="-1", retention_bytes="100000", message_timestamp_after_max_ms=str(2 * years_ms)
    )
    produce(world, ["ahead"], age_ms=-years_ms)  # of a wrong clock: it says nothing of those behind it
    produce(world, [f"e{number}" for number in range(200)], age_ms=10 * HOUR_MS, note="x" * 200)
    world.ingest_here()
    row = _events_row(world)
    assert row["hours_by_time"] is None
    assert (row["unread"], row["alarm"]) == (0, False)
    produce(world, ["ahead too"], age_ms=-years_ms)
    produce(world, [f"f{number}" for number in range(200)], age_ms=HOUR_MS, note="x" * 200)
    behind = _events_row(world)
    assert behind["unread"] == 201
    assert 0 < float(str(behind["hours_by_bytes"])) < float(str(row["hours_by_bytes"]))
    assert behind["alarm"] is True
    configure(world, EVENTS, retention_ms=str(4 * HOUR_MS))
    assert _events_row(world)["hours_by_time"] == pytest.approx(3.0, abs=0.05)


def _events_row(world: World) -> dict[str, object]:
    rows = measure_here(world.settings, world.home)["readers"]
    return next(row for row in rows if (row["reader"], row["topic"]) == ("lake", EVENTS))


def test_compaction_of_events_is_refused_at_the_start(world: World) -> None:
    configure(world, EVENTS, cleanup_policy="compact,delete")
    with pytest.raises(MantaError, match=r"topic events: found cleanup\.policy=compact,delete, wanted delete"):
        ensure_topics(world.settings.kafka)
