"""The writer's change to another database: not before it has what the one before it has shown."""

import itertools
import time
from pathlib import Path
from typing import Any, cast

import pytest

from app.events.schema import EVENTS
from app.settings import Settings
from app.state.batch import Batch
from app.state.feed import Read, StateFeed
from app.state.position import Position, Published
from app.state.shares import shard
from app.state.store import StateStore
from app.state.writer import StateWriterLoop


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
