"""The course of an erasure: what comes first, what fails, and what is made up for after a kill."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import erase
from app.erase import Eraser, PartlyCleared, alone, request
from app.erasure.erased import TopicEnd
from app.erasure.ledger import Erasure, ErasureLedger
from app.erasure.places import Known, PlaceReport, Subject, cleared
from app.errors import MantaError, StateUnavailable
from app.events.ranges import TopicBounds
from app.events.schema import EVENTS, IMPRESSIONS, USERS
from app.settings import Settings
from deployments.erasures import Erasures

SETTINGS = Settings()


class Killed(BaseException):
    """As good as kill -9: nothing catches it."""


class World:
    """A broker and states, without either."""

    def __init__(self, home: Path) -> None:
        self.home, self.ledger = home, ErasureLedger(SETTINGS, home)
        self.ends = {EVENTS: 10, IMPRESSIONS: 20, USERS: 30}
        self.withdrawn: list[str] = []
        self.known: Known | None = Known(("s",), True)
        self.cleared: list[Subject] = []

    def bounds(self, _: object, topics: list[str]) -> dict[str, TopicBounds]:
        return {topic: TopicBounds(topic, "t", {0: 0}, {0: self.ends[topic]}) for topic in topics}

    def withdraw(self, subject: Subject) -> None:
        self.withdrawn.append(subject.user_id)
        self.ends[USERS] += 1
        self.known = Known(self.known.sessions, False) if self.known else None

    # States

    def known_(self, _: Subject) -> Known:
        if self.known is None:
            raise StateUnavailable("state: found offset 3, wanted 10")
        return self.known

    def erase(self, subject: Subject) -> list[PlaceReport]:
        self.cleared.append(subject)
        return [cleared("state: node")]

    def run(self, *places: Callable[[Subject], list[PlaceReport]]) -> Erasure:
        erasure = request(SETTINGS, self.ledger, "ann")
        return Eraser(SETTINGS, self.ledger, States(self), [At(place) for place in places]).run(erasure.id)


class States:
    def __init__(self, world: World) -> None:
        self.known, self.erase = world.known_, world.erase


class At:
    name = "shelf"

    def __init__(self, clear: Callable[[Subject], list[PlaceReport]]) -> None:
        self.clear = clear


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(erase, "bounds", world.bounds)
    monkeypatch.setattr(Eraser, "_withdraw", world.withdraw)
    monkeypatch.setattr(erase, "_ON_THEIR_WAY_S", 0.0)
    monkeypatch.setattr(erase, "_PATIENCE_S", 0.0)
    return world


def test_prepared_settled_cleared_done(world: World) -> None:
    settled: list[int] = []

    def look(subject: Subject) -> list[PlaceReport]:
        settled.append(len(world.ledger.erased().boundaries("session", "s")))
        world.ends[IMPRESSIONS] = 99
        return [cleared("shelf: a"), PlaceReport("shelf: b", retention_until="unknown", detail=subject.erasure)]

    done = world.run(look)
    assert (done.state, done.user_id, settled, world.withdrawn) == ("done", None, [1], ["ann"])
    assert [report.place for report in done.places] == ["state: node", "shelf: a", "shelf: b"]
    subject = world.cleared[0]
    assert (subject.user_id, subject.sessions) == ("ann", ("s",))
    assert subject.ends == {
        EVENTS: TopicEnd("t", {0: 10}),
        IMPRESSIONS: TopicEnd("t", {0: 20}),
        USERS: TopicEnd("t", {0: 31}),
    }
    again = request(SETTINGS, world.ledger, "ann")
    assert again.id != done.id, "what came since is another erasure"


def test_somebody_without_columns_gets_no_message(world: World) -> None:
    world.known = Known((), False)
    assert world.run().state == "done"
    assert world.withdrawn == []
    assert world.cleared[0].ends[USERS] == TopicEnd("t", {0: 30})


def test_what_fails_is_named_without_an_id_and_tried_again(world: World) -> None:
    def full(_: Subject) -> list[PlaceReport]:
        raise MantaError("shelf of ann: found no room, wanted some")

    def broken(subject: Subject) -> list[PlaceReport]:
        return [cleared(subject.user_id[99])]

    def partly(_: Subject) -> list[PlaceReport]:
        raise PartlyCleared([cleared("shelf: c")], "shelf: d: busy")

    failed = world.run(full, broken, partly)
    assert failed.state == "failed"
    assert failed.reason == (
        "shelf: shelf of (the user): found no room, wanted some; shelf: string index out of range; shelf: d: busy"
    )
    assert [report.place for report in failed.places] == ["state: node", "shelf: c"]
    assert "ann" not in str(failed.as_json())
    done = world.run()
    assert (done.id, done.state, done.reason) == (failed.id, "done", None)
    assert world.withdrawn == ["ann"]


def test_a_state_that_has_not_read_up_to_there_is_waited_for(world: World) -> None:
    world.known = None
    failed = world.run()
    assert (failed.state, failed.settled) == ("failed", False)
    assert "found offset 3" in str(failed.reason)
    assert len(world.ledger.erased()) == 0, "merges that are still to be read must be"
    world.known = Known((), False)
    assert world.run().id == failed.id
    assert world.run().id != failed.id


@pytest.mark.parametrize("point", ["erasure:withdrawn", "erasure:settled", "erasure:place"])
def test_killed_anywhere_it_is_ended(world: World, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reach(reached: str) -> None:
        if reached == point:
            raise Killed

    monkeypatch.setattr(erase, "reach", reach)
    with pytest.raises(Killed):
        world.run()
    (left,) = world.ledger.unfinished()
    assert left.state == "running"
    monkeypatch.setattr(erase, "reach", lambda _: None)
    done = world.run()
    assert (done.id, done.state) == (left.id, "done")
    assert world.cleared[-1].ends[USERS] == TopicEnd("t", {0: world.ends[USERS]}), "its own message is left out too"
    assert world.cleared[-1].sessions == ("s",)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path) as first, alone(tmp_path) as second:
        assert (first, second) == (True, False)
    with alone(tmp_path) as again:
        assert again


def test_whatever_goes_wrong_erasures_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would begin their thread anew."""
    tries, tried_again = [], threading.Event()

    @contextmanager
    def full_disk_at_first(_: Path) -> Iterator[bool]:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise OSError("no space left on device")
        tried_again.set()
        yield False

    monkeypatch.setattr("deployments.erasures.alone", full_disk_at_first)
    Erasures(Settings.model_validate({"erasure": {"retry_s": 0.01}}), tmp_path)
    assert tried_again.wait(60)
