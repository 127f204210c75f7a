"""The writer's change to another database: not before it has what the one before it has shown."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.settings import Settings
from app.state.batch import Batch, user_key
from app.state.feed import Read, StateFeed
from app.state.layout import StatePaths, choose_generation, database
from app.state.position import Position, Published
from app.state.shard_here import ShardHere
from app.state.shares import shard
from app.state.store import StateStore
from app.state.writer import StateWriterLoop
from tests.contract.test_state_readers import event, events


class Slow:
    """A feed that brings nothing for a while, as if the broker were away, then one message's offset a poll."""

    def __init__(self) -> None:
        self.polls = 0
        self.topic_ids: dict[str, str] = {}
        self.partitions = {EVENTS: 1}

    def poll(self, _timeout_s: float, _most: int) -> Read:
        self.polls += 1
        return Read() if self.polls <= 20 else Read(offsets={(EVENTS, 0): self.polls - 20})

    @property
    def connected(self) -> bool:
        return self.polls > 20

    def lag(self) -> dict[str, int]:
        return {EVENTS: 1}


def test_another_database_is_not_shown_before_it_has_what_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = StateWriterLoop(Settings(), tmp_path)
    position = Position.create(tmp_path / "position")
    position.publish(Published({EVENTS: {0: 5}}, generation=0, moves=1))
    store, feed = StateStore(tmp_path / "db", Settings(), generation=1), Slow()
    hours = itertools.count(0.0, 3600.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(hours))  # however long it takes
    monkeypatch.setattr(loop._room, "shortage", lambda: None)
    loop._reach(position, store, cast(StateFeed, cast(Any, feed)))
    assert store.offsets() == {EVENTS: {0: 5}}
    assert feed.polls == 25
    store.apply(Batch())
    store.close()
    position.close()


class Busy:
    """A feed of a topic to which somebody always writes: it never brings nothing."""

    def __init__(self, end: int) -> None:
        self.polls = 0
        self.topic_ids: dict[str, str] = {}
        self.partitions = {EVENTS: 1}
        self.ends = {(EVENTS, 0): end}
        self.connected = True

    def poll(self, _timeout_s: float, _most: int) -> Read:
        self.polls += 1
        assert self.polls < 100, "found no end, wanted one where the log ended at first"
        return Read(offsets={(EVENTS, 0): self.polls})

    def lag(self) -> dict[str, int]:
        return {EVENTS: 1}


def test_a_shard_is_shown_at_where_the_log_ended_though_events_go_on_coming(tmp_path: Path) -> None:
    loop = StateWriterLoop(Settings(), tmp_path, shard(0, 1))
    position = Position.create(tmp_path / "position")
    store, feed = StateStore(tmp_path / "db", Settings(), share=shard(0, 1)), Busy(7)
    loop._reach(position, store, cast(StateFeed, cast(Any, feed)))
    assert loop._reached
    assert store.offsets() == {EVENTS: {0: 7}}
    store.close()
    position.close()


def test_other_nodes_read_on_while_the_writer_has_no_database_open_and_nothing_before_it_has_caught_up(
    tmp_path: Path,
) -> None:
    share, paths = shard(0, 1), StatePaths.of(tmp_path).shard(0)
    choose_generation(paths.databases, 0)
    store = StateStore(database(paths.databases, 0), Settings(), share=share)
    published = store.apply(events(event(0, "i"), event(1, "j")))
    position, loop = Position.create(paths.position), StateWriterLoop(Settings(), tmp_path, share)
    loop._store = store
    with pytest.raises(StateUnavailable, match="published nothing"):
        loop.look([user_key("u")])
    position.publish(published)
    loop._store = None
    store.close()
    looked = loop.look([user_key("u"), user_key("nobody")])
    assert [found.record is not None for found in looked.found] == [True, False]
    assert (looked.applied, looked.as_of) == ({0: 2}, 1)
    loop._stand_in.close()
    assert not any(paths.replicas.iterdir())
    position.close()


class Away:
    """A feed whose broker is away until it is `connected`; then there is nothing new."""

    def __init__(self) -> None:
        self.connected, self.error = False, "away"
        self.topic_ids: dict[str, str] = {}
        self.partitions = {EVENTS: 1}
        self.ends: dict[tuple[str, int], int] = {}

    def poll(self, timeout_s: float, _most: int) -> Read:
        time.sleep(min(timeout_s, 0.01))
        return Read()

    def lag(self) -> dict[str, int]:
        return {EVENTS: 0}

    def reached_ms(self, _topic: str) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("away_s", [1, 60])
def test_a_shard_that_was_away_shows_nothing_before_it_has_seen_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away_s: int
) -> None:
    """Another node may have written it meanwhile. One whose writer was merely restarted shows what it has at once."""
    share, paths, feed = shard(0, 1), StatePaths.of(tmp_path).shard(0), Away()
    choose_generation(paths.databases, 0)
    store = StateStore(database(paths.databases, 0), Settings(), share=share)
    position, now = Position.create(paths.position), time.time_ns()
    with monkeypatch.context() as clock:
        clock.setattr("app.state.position.time.time_ns", lambda: now - away_s * 10**9)
        position.publish(store.apply(events(event(0, "i"))))
    store.close()
    monkeypatch.setattr("app.state.writer.feed_of", lambda *_: feed)
    monkeypatch.setattr("app.state.writer._AWAY_MS", 50_000)
    loop = StateWriterLoop(Settings.model_validate({"state": {"min_free_bytes": 0}}), tmp_path, share)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        until(lambda: loop.status()["state"] == "no broker")
        until(lambda: position.heartbeat_ms * 10**6 >= now)
        if away_s < 50:
            until(loop.caught_up)
        else:
            time.sleep(0.2)
            assert (loop.caught_up(), position.moves) == (False, 0)
        feed.connected = True
        until(loop.caught_up)
        assert position.moves
    finally:
        loop.stop()
        thread.join()
        position.close()


def test_what_may_not_be_written_is_left_as_it_is_until_another_database_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each publication of a database that is closed at once would be one that readers look for in vain."""
    share, paths, feed, opened = shard(0, 1), StatePaths.of(tmp_path).shard(0), Away(), []
    choose_generation(paths.databases, 0)
    store = StateStore(database(paths.databases, 0), Settings(), share=share)
    store.require_partitions(1)
    published, position = store.apply(events(event(0, "i"))), Position.create(paths.position)
    position.publish(published)
    store.close()
    feed.connected, feed.error, feed.partitions = True, "", {EVENTS: 2}

    def feed_of(*_: object) -> Away:
        opened.append(position.moves)
        return feed

    monkeypatch.setattr("app.state.writer.feed_of", feed_of)
    monkeypatch.setattr("app.state.writer._LOOK_S", 0.01)
    monkeypatch.setattr("app.state.writer._REFUSED_S", 0.05)
    loop = StateWriterLoop(Settings.model_validate({"state": {"min_free_bytes": 0}}), tmp_path, share)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        until(lambda: len(opened) > 3)
        assert "found 2 partitions of events, wanted 1 " in paths.stopped.read_text()
        assert set(opened[1:]) == {opened[1]}
        assert loop.look([user_key("u")]).found[0].record is not None
        store = StateStore(database(paths.databases, 1), Settings(), generation=1, share=share)
        store.require_partitions(2)
        store.apply(events(event(0, "i"), event(1, "j")))
        store.close()
        choose_generation(paths.databases, 1)
        until(loop.caught_up)
        assert loop.look([user_key("u")]).applied == {0: 2}
        assert not paths.stopped.exists()
    finally:
        loop.stop()
        thread.join()
        position.close()


def until(ask: Callable[[], object], seconds: float = 60.0) -> None:
    """Returns once it is true."""
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, f"not so after {seconds:g} s"
        time.sleep(0.005)


def test_a_reader_of_a_shard_that_fails_for_long_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share, paths = shard(0, 1), StatePaths.of(tmp_path).shard(0)
    monkeypatch.setattr("app.state.shard_here._AGAIN_S", 0.0)
    monkeypatch.setattr("app.state.shard_here._ANEW_S", 0.0)
    here = ShardHere(tmp_path, "reader", 0, 1)
    here.catch_up()
    with pytest.raises(StateUnavailable, match="no state has been written here yet"):
        here.look([user_key("u")])
    store = StateStore(database(paths.databases, 0), Settings(), share=share)
    position = Position.create(paths.position)
    position.publish(store.apply(events(event(0, "i"))))
    here.catch_up()
    assert here.look([user_key("u")])[0].record is not None

    def broken() -> None:
        raise StateUnavailable("its files are damaged")

    monkeypatch.setattr(here.replica, "catch_up", broken)
    position.publish(store.apply(events(event(1, "j"))))
    here.catch_up()
    with pytest.raises(StateUnavailable, match="damaged"):
        here.look([user_key("u")])
    until(lambda: here.catch_up() or here.error is None)  # type: ignore[func-returns-value]
    assert here.look([user_key("u")])[0].record == store.look([user_key("u")])[0].record
    here.replica.close()
    position.close()
    store.close()


def test_a_database_stays_while_it_is_read_and_erasures_wait_for_the_one_that_was_chosen(tmp_path: Path) -> None:
    """A rebuild has chosen another database: until its writer has caught up, all read the one before it."""
    loop, databases = StateWriterLoop(Settings(), tmp_path), StatePaths.of(tmp_path).databases
    position = Position.create(StatePaths.of(tmp_path).position)
    feed = cast(StateFeed, cast(Any, Away()))
    before, after = (StateStore(database(databases, n), Settings(), generation=n) for n in (0, 1))
    choose_generation(databases, 1)
    loop._opened = float("-inf")  # it has been written for long
    asked = threading.Thread(target=lambda: loop.erasures.known("u", {}))
    asked.start()
    try:
        assert loop._look(position, before, feed) == 1
        assert database(databases, 0).exists()
        until(lambda: not loop.erasures._asked.empty())
        loop.erasures.serve(before, position)
        assert not loop.erasures._asked.empty()
        loop.erasures.serve(after, position)
    finally:
        before.close()
        asked.join()
    assert loop._look(position, after, feed) == 1
    assert not database(databases, 0).exists()
    after.close()
    position.close()
