"""The state writer on Apache Kafka under kill -9, outages and logs that moved away under it."""

import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka import KafkaAdminClient
from kafka import TopicPartition as AdminPartition
from kafka.admin import NewPartitions

from app.errors import MantaError, StateUnavailable
from app.events.columns import RECORDS, decode
from app.events.connection import consumer_config
from app.events.producer import EventProducer
from app.events.schema import EVENTS, ITEMS, USERS, Event, columns_message, event_messages
from app.events.topics import bounds, ensure_topics
from app.lake.commit import Progress as LakeProgress
from app.lake.commit import TopicOffsets, append
from app.lake.tables import Lake, open_lake
from app.settings import Settings
from app.state.batch import Batch
from app.state.feed import Read
from app.state.layout import StatePaths, database
from app.state.memory import fold_everything
from app.state.messages import to_batch
from app.state.reader import Kind
from app.state.rebuild import rebuild
from app.state.replica import StateReplica
from app.state.sharded import ShardedState
from app.state.shares import Share, shard
from app.state.store import StateStore
from app.state.writer import StateWriterLoop
from deployments.status import lag
from scripts import apache_kafka
from tests.faults.state_child import settings_for
from tests.property.test_state import DAY, stored

T = TypeVar("T")
pytestmark = [pytest.mark.kafka, pytest.mark.faults]


def until(ask: Callable[[], T], seconds: float = 90.0) -> T:
    """What `ask` says once it is true; StateUnavailable counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := ask():
                return found
        except StateUnavailable:
            found = None
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.01)


class Child:
    """The writer as a process that is started again after each kill."""

    def __init__(self, home: Path, broker: str) -> None:
        self._command = [sys.executable, "-m", "tests.faults.state_child", str(home), broker]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(20)


@pytest.fixture(scope="module")
def own_kafka(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """One broker for these tests alone: they kill it, and make its topics anew."""
    home = tmp_path_factory.mktemp("kafka")
    yield apache_kafka.start(home), home
    apache_kafka.end(home, signal.SIGKILL)


@pytest.fixture
def topics(own_kafka: tuple[str, Path]) -> Iterator[Settings]:
    settings = settings_for(own_kafka[0])
    ensure_topics(settings.kafka, (EVENTS, ITEMS, USERS))
    yield settings
    admin = KafkaAdminClient(bootstrap_servers=own_kafka[0])
    admin.delete_topics([EVENTS, ITEMS, USERS])
    admin.close()
    until(lambda: not any(held.exists for held in bounds(settings.kafka, (EVENTS, ITEMS, USERS)).values()))


@pytest.fixture
def loop(topics: Settings, tmp_path: Path) -> Iterator[StateWriterLoop]:
    """A writer in a thread of this process."""
    loop = StateWriterLoop(topics, tmp_path)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[StateReplica]:
    replica = StateReplica.of_home(tmp_path, "test")
    yield replica
    replica.close()


def send(settings: Settings, events: list[dict[str, object]]) -> None:
    messages = [
        message for event in events for message in event_messages(Event.model_validate(event), int(time.time() * 1000))
    ]
    producer = EventProducer(settings.kafka, delivery_timeout_s=30)
    producer.send_blocking(EVENTS, messages)
    producer.close()


def click(number: int, user: str = "u") -> dict[str, object]:
    return {"user_id": user, "item_id": str(number), "event_type": "click", "event_id": str(number)}


def items_of(replica: StateReplica, user: str = "u") -> tuple[str, ...]:
    if replica.behind():
        replica.catch_up()
    return replica.histories([("user", user)])[0].item_ids


def whole_log(settings: Settings) -> Read:
    """Everything the topic `events` holds."""
    held = bounds(settings.kafka, [EVENTS])[EVENTS]
    consumer = Consumer(consumer_config(settings.kafka))
    consumer.assign([TopicPartition(EVENTS, partition, held.first[partition]) for partition in held.end])
    left = sum(end - held.first[partition] for partition, end in held.end.items())
    read = Read()
    while len(read.messages) < left:
        read.messages += consumer.consume(1000, 0.2)
    consumer.close()
    return read


def test_killed_at_random_under_load_the_state_is_the_fold_of_the_log(
    topics: Settings, own_kafka: tuple[str, Path], tmp_path: Path, replica: StateReplica
) -> None:
    """Also: whatever the position says is applied can be read from another process at once, under load."""
    draw, child = random.Random(7), Child(tmp_path, own_kafka[0])
    kinds, ids = ["click", "rating", "remove", "merge"], [f"id{n}" for n in range(12)]
    moment = 1_700_000_000

    def event(number: int) -> dict[str, object]:
        kind = draw.choice(kinds if number % 10 == 0 else kinds[:2])
        seconds = moment + number // 5 - draw.choice((0, 0, 0, 300))
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
        who = {"user_id": draw.choice(ids)} if draw.random() < 0.7 else {"session_id": "s" + draw.choice(ids)}
        who = {"user_id": draw.choice(ids), "session_id": "s" + draw.choice(ids)} if kind == "merge" else who
        what = {} if kind == "merge" else {"item_id": str(draw.randrange(50))}
        return {**who, **what, "event_type": kind, "event_time": at, "event_id": str(draw.randrange(number + 1))}

    stopped, seen = threading.Event(), [0]

    def watch() -> None:
        while not stopped.wait(0.001):
            try:
                if replica.behind():
                    replica.catch_up()  # raises where the promised publication cannot be read
                    seen[0] += 1
            except StateUnavailable as error:
                if seen[0]:
                    unreadable.append(error)

    unreadable: list[StateUnavailable] = []
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for round_ in range(5):
            send(topics, [event(round_ * 2000 + number) for number in range(2000)])
            time.sleep(draw.random() * 0.3 if round_ else 2.0)
            child.end(signal.SIGKILL)
            child.start()
        ends = bounds(topics.kafka, [EVENTS])[EVENTS].end
        until(lambda: all(replica.applied(EVENTS, p) >= end for p, end in ends.items()))
    finally:
        stopped.set()
        watcher.join()
        child.end(signal.SIGTERM)
    assert seen[0] > 3
    assert not unreadable
    events = to_batch(whole_log(topics), topics.events).events
    horizon = int(topics.events.dedup_days * DAY)
    folded = fold_everything(events, topics.state.max_history, horizon)
    assert stored(StatePaths.of(tmp_path).databases / "00000000") == folded


def test_an_outage_is_waited_out_and_a_new_partition_is_noticed(
    topics: Settings, own_kafka: tuple[str, Path], loop: StateWriterLoop, replica: StateReplica
) -> None:
    send(topics, [click(1)])
    until(lambda: items_of(replica) == ("1",))
    apache_kafka.end(own_kafka[1], signal.SIGKILL)
    until(lambda: loop.status()["state"] == "no broker")
    assert items_of(replica) == ("1",)
    until(lambda: replica.lag() == -1)
    apache_kafka.start(own_kafka[1])
    send(topics, [click(2)])
    until(lambda: items_of(replica) == ("1", "2"), 15)
    assert loop.status()["jumps"] == {}
    admin = KafkaAdminClient(bootstrap_servers=own_kafka[0])
    admin.create_partitions({EVENTS: 5})
    admin.close()
    send(topics, [click(10 + number, f"v{number}") for number in range(20)])
    until(lambda: all(items_of(replica, f"v{number}") for number in range(20)))
    until(lambda: loop.lag() == {EVENTS: 0, ITEMS: 0, USERS: 0})


def test_offsets_that_the_log_does_not_hold_are_jumped_and_counted(
    topics: Settings, own_kafka: tuple[str, Path], tmp_path: Path, replica: StateReplica
) -> None:
    """A log that ends earlier than it did, retention that was faster, a topic made anew."""
    store = StateStore(database(StatePaths.of(tmp_path).databases, 0), topics)
    store.topic_ids = {EVENTS: bounds(topics.kafka, [EVENTS])[EVENTS].topic_id}
    store.apply(Batch(offsets={(EVENTS, 0): 30, (EVENTS, 1): 7}))
    store.close()
    with running(topics, tmp_path) as loop:
        until(lambda: loop.status()["jumps"] == {"log_end": 37})
        send(topics, [click(number) for number in range(10)])
        until(lambda: len(items_of(replica)) == 10)
    (partition,) = [p for p in range(2) if replica.applied(EVENTS, p)]
    admin = KafkaAdminClient(bootstrap_servers=own_kafka[0])
    send(topics, [click(number) for number in range(10, 20)])
    admin.delete_records({AdminPartition(EVENTS, partition): 15})
    with running(topics, tmp_path) as loop:
        until(lambda: len(items_of(replica)) == 15)
        assert loop.status()["jumps"] == {"log_end": 37, "gap": 5}
        until(lambda: replica.jumped() == lag(tmp_path)["state_jumped_messages"] == 42)
    admin.delete_topics([EVENTS])
    until(lambda: not bounds(topics.kafka, [EVENTS])[EVENTS].exists)
    ensure_topics(topics.kafka, [EVENTS])
    admin.close()
    send(topics, [click(20)])
    with running(topics, tmp_path) as loop:
        until(lambda: items_of(replica)[-1] == "20")
        assert loop.status()["jumps"] == {"log_end": 37, "gap": 5, "recreated": 20}
        assert replica.applied(EVENTS, partition) == 1


def test_a_rebuild_from_the_lake_gives_the_same_state_and_everyone_follows(
    topics: Settings, tmp_path: Path, replica: StateReplica
) -> None:
    events = [click(number, f"u{number % 7}") for number in range(60)]
    events[50]["event_type"] = "remove"
    send(topics, events)
    item, gone = columns_message({"title": "A", "genres": ["x"]}), columns_message({"title": "B"})
    send_columns(topics, [(b"i1", item), (b"i2", gone), (b"i2", None)])
    users = [("user", f"u{n}") for n in range(7)]
    with running(topics, tmp_path) as loop:
        until(lambda: len(items_of(replica, "u3")) == 9)
        until(lambda: loop.lag() == {EVENTS: 0, ITEMS: 0, USERS: 0} and items_of(replica) == () and replica.item("i2"))
        before = replica.histories(users)  # type: ignore[arg-type]
        sequence = max(change.sequence for change in replica.item_changes(0))
        lake = open_lake(topics, tmp_path)
        fill_lake(lake, topics, upto=20)
        crowded = topics.model_copy(update={"state": topics.state.model_copy(update={"min_free_bytes": 1 << 60})})
        with pytest.raises(MantaError, match="no room on the disk for a second database, the one in use stays"):
            rebuild(crowded, tmp_path, lake)
        assert not database(StatePaths.of(tmp_path).databases, 1).exists()
        report = rebuild(topics, tmp_path, lake)
        assert (report.generation, report.jumps) == (1, {})
        assert report.events + report.followed == 60 + 3
        assert report.events > 0
        assert report.followed > 3
        until(lambda: loop.status()["generation"] == 1)
        until(replica.behind)
        replica.catch_up()
        after = replica.histories(users)  # type: ignore[arg-type]
        assert [one.version for one in after] == [one.version for one in before]
        assert [one.item_ids for one in after] == [one.item_ids for one in before]
        changes = replica.item_changes(sequence)
        assert [(change.item_id, change.available) for change in changes] == [("i1", True), ("i2", False)]
        send(topics, [click(100, "u1")])
        until(lambda: items_of(replica, "u1")[-1] == "100")


def test_shards_show_what_a_node_shows_through_a_rebuild_and_new_partitions(
    topics: Settings, own_kafka: tuple[str, Path], tmp_path: Path
) -> None:
    section = topics.state.model_copy(update={"placement": "sharded", "shards": 2})
    parted = topics.model_copy(update={"state": section})
    whole, home = tmp_path / "whole", tmp_path / "parted"
    send(topics, [click(number, f"u{number % 7}") for number in range(60)])
    visits: list[dict[str, object]] = [
        {"session_id": f"s{n}", "item_id": str(n), "event_type": "click", "event_time": f"2020-01-0{n}T00:00:00Z"}
        for n in range(1, 6)
    ]
    logins: list[dict[str, object]] = [
        {"user_id": f"u{n}", "session_id": f"s{n}", "event_type": "merge"} for n in (1, 2, 5)
    ]
    send(topics, [*visits, *logins])
    send_columns(topics, [(b"i1", columns_message({"title": "A"}))])
    keys: list[tuple[Kind, str]] = [
        *(("user", f"u{n}") for n in range(7)),
        *(("session", f"s{n}") for n in range(1, 6)),
    ]
    reader, node = ShardedState(home, "test", section), StateReplica.of_home(whole, "test")
    reader.keep([0, 1])

    def versions(one: ShardedState | StateReplica) -> list[int]:
        if one.behind():
            one.catch_up()
        return [history.version for history in one.histories(keys)]

    with running(topics, whole), running(parted, home):
        until(lambda: all(versions(node)))
        with running(parted, home, shard(0, 2)) as first, running(parted, home, shard(1, 2)) as second:
            until(lambda: versions(reader) == versions(node))
            until(lambda: versions(reader) and reader.item("i1"))
            assert reader.merged_into("s1") == "u1"
            assert set(first.status()["offsets"][EVENTS]) == {0}
            assert [one.merged is not None for one in second.look([b"ss1", b"ss2", b"ss5"]).found].count(True) < 4
            lake = open_lake(topics, tmp_path)
            fill_lake(lake, topics, upto=20)
            report = rebuild(parted, home, lake)
            assert (report.generation, report.jumps) == (1, {})
            until(lambda: [first.status()["generation"], second.status()["generation"]] == [1, 1])
            until(lambda: versions(reader) == versions(node))
            admin = KafkaAdminClient(bootstrap_servers=own_kafka[0])
            admin.create_partitions({EVENTS: NewPartitions(4)})
            admin.close()
            line = "found 4 partitions of events, wanted 2 as when it was made: run `manta state rebuild`"
            until(lambda: line in str(first.status()["error"]) and line in str(second.status()["error"]))
            assert line in str(reader.stopped())
            send(topics, [click(number, f"u{number % 7}") for number in range(60, 90)])
            until(lambda: node.behind() or None)
            rebuild(parted, home, lake)
            until(lambda: reader.stopped() is None)
            until(lambda: versions(reader) == versions(node))
            send(topics, [click(number, f"u{number % 7}") for number in range(90, 99)])
            until(lambda: len(items_of(node, "u0")) == 15)
            until(lambda: versions(reader) == versions(node))
    three = StateWriterLoop(parted.model_copy(update={"state": section.model_copy(update={"shards": 3})}), home)
    thread = threading.Thread(target=three.run)
    thread.start()
    until(lambda: "beside 2 shards, wanted the items and users beside 3 shards" in str(three.status()["error"]))
    three.stop()
    thread.join()
    reader.close()
    node.close()


def send_columns(settings: Settings, messages: list[tuple[bytes, bytes | None]]) -> None:
    producer = EventProducer(settings.kafka, delivery_timeout_s=30)
    producer.send_blocking(ITEMS, messages)
    producer.close()


def fill_lake(lake: Lake, settings: Settings, upto: int) -> None:
    """As an ingest would have left it that read `upto` messages of each partition."""
    messages = [message for message in whole_log(settings).messages if message.offset() < upto]
    fields = [(m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value()) for m in messages]
    records = pa.table([list(column) for column in zip(*fields, strict=True)], schema=RECORDS)
    held = bounds(settings.kafka, [EVENTS])[EVENTS]
    offsets = TopicOffsets(held.topic_id, {p: min(upto, end) for p, end in held.end.items()})
    rows = decode(EVENTS, records, settings.events).events
    append(lake.table(EVENTS), rows, LakeProgress({EVENTS: offsets}), max_open_partitions=5)


class running:  # noqa: N801 - reads as a phrase
    """A writer in a thread for a while."""

    def __init__(self, settings: Settings, home: Path, share: Share | None = None) -> None:
        self._loop = StateWriterLoop(settings, home, share)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException:
            traceback.print_exc()  # a test that waits for it in vain shows why
            raise

    def __enter__(self) -> StateWriterLoop:
        self._thread.start()
        return self._loop

    def __exit__(self, *_: object) -> None:
        self._loop.stop()
        self._thread.join()
