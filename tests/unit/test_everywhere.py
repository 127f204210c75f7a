"""Erasures where nodes of one machine share a disk: one has a database open, the others wait for it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.erasure.places import Known
from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.settings import Settings
from app.state import writer
from app.state.batch import Batch
from app.state.erasures import HeldElsewhere, NodeErasures
from app.state.everywhere import Said, ask_each, held_by_nobody
from app.state.layout import StatePaths, choose_generation, database
from app.state.position import Position
from app.state.store import StateStore
from app.state.writer import StateWriterLoop

MACHINES = {"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.2"}


def said(did: set[int], held: set[int]) -> Said:
    return Said(Known((), False), frozenset(did), frozenset(held))


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateWriterLoop]:
    """A writer whose database another one has open, which has applied up to offset 7."""
    monkeypatch.setattr(writer, "_HELD_S", 0.1)
    paths = StatePaths.of(tmp_path)
    choose_generation(paths.databases, 0)
    store, position = StateStore(database(paths.databases, 0), Settings()), Position.create(paths.position)
    position.publish(store.apply(Batch(offsets={(EVENTS, 0): 7})))
    loop = StateWriterLoop(Settings(), tmp_path)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join()
    store.close()
    position.close()


def test_a_writer_that_waits_for_its_database_says_so_at_once(waiting: StateWriterLoop) -> None:
    began = time.monotonic()
    with pytest.raises(HeldElsewhere):
        waiting.erasures.known("u", {})
    assert time.monotonic() - began < 30, "found it asked until its time was over"
    assert waiting.status()["offsets"][EVENTS] == {0: 7}, "readers of its node see what the other one applies"


def test_a_database_that_is_just_being_closed_is_waited_for(waiting: StateWriterLoop) -> None:
    waiting._blocked = time.monotonic() + 3600
    assert waiting.blocked
    assert not waiting.waits()


def test_of_the_databases_of_a_node_those_that_others_have_open_are_told_apart(tmp_path: Path) -> None:
    class One(NodeErasures):
        def known(self, *_: object) -> Known:
            return Known(("s",), True)

    class Held(NodeErasures):
        def known(self, *_: object) -> Known:
            raise HeldElsewhere("found it open elsewhere")

    databases = {-1: Held(Settings(), tmp_path), 0: One(Settings(), tmp_path), 1: Held(Settings(), tmp_path)}
    found = ask_each(databases, lambda one: one.known("u", {}))
    assert found == Said(Known(("s",), True), frozenset({0}), frozenset({-1, 1}))
    assert ask_each({0: databases[0]}, lambda _: None) == said({0}, set())

    def fails(_: NodeErasures) -> Known:
        raise StateUnavailable("not applied yet")

    with pytest.raises(StateUnavailable):
        ask_each(databases, fails)


def test_what_a_node_found_held_must_be_done_by_another_of_its_machine() -> None:
    assert held_by_nobody({"a": said({-1, 0}, set()), "b": said({1}, {-1})}, MACHINES) == {}
    apart = held_by_nobody({"a": said({0}, {-1, 1}), "c": said({-1, 1}, set())}, MACHINES)
    assert apart.keys() == {"a"}, "a database of another machine is not the one that it waits for"
    assert "its own, shard 1" in apart["a"]
    assert held_by_nobody({"b": said(set(), {-1})}, MACHINES).keys() == {"b"}, "whoever has it did not answer"
