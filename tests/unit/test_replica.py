"""What a replica says when it cannot follow, and how it goes on when it can again."""

import threading
from pathlib import Path

import pytest

from app.errors import StateUnavailable
from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.layout import choose_generation, database, remove_older
from app.state.position import Position, Published
from app.state.replica import StateReplica
from app.state.store import StateStore


def click(offset: int) -> Batch:
    event = StateEvent(0, offset, 0, None, "u", None, str(offset), "click", offset * 1000, float("nan"))
    return Batch(events=[event], offsets={("events", 0): offset + 1})


class Node:
    """A writer's store and position in a folder, and a replica of them."""

    def __init__(self, root: Path) -> None:
        self.databases = root / "db"
        self.position = Position.create(root / "position")
        self.open(0)
        self.replica = StateReplica(self.databases, root / "replicas" / "r", root / "position")

    def open(self, generation: int) -> None:
        self.store = StateStore(database(self.databases, generation), Settings(), generation=generation)

    def apply(self, offset: int) -> None:
        self.position.publish(self.store.apply(click(offset)))

    def items(self) -> tuple[str, ...]:
        return self.replica.histories([("user", "u")])[0].item_ids


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_before_the_first_catch_up_nothing_can_be_read(node: Node, tmp_path: Path) -> None:
    assert node.replica.behind()
    assert (node.replica.applied("events", 0), node.replica.as_of(), node.replica.lag()) == (0, 0, -1)
    with pytest.raises(StateUnavailable, match="published nothing"):
        node.replica.catch_up()
    with pytest.raises(StateUnavailable, match="not opened"):
        node.items()
    with pytest.raises(StateUnavailable, match="cannot be read"):
        StateReplica(tmp_path / "no", tmp_path / "no-replica", tmp_path / "no-position").catch_up()


def test_a_database_that_cannot_be_followed_is_told_and_recovers(node: Node) -> None:
    node.apply(0)
    node.replica.catch_up()
    hidden = node.databases.with_name("hidden")
    node.databases.rename(hidden)
    node.replica.catch_up()  # nothing is ahead: what was read can be read
    node.position.publish(Published({"events": {0: 2}}, moves=node.position.moves + 1))
    assert node.replica.behind()
    with pytest.raises(StateUnavailable, match="no database"):
        node.replica.catch_up()
    assert node.items() == ("0",)
    hidden.rename(node.databases)
    node.store.outrun(node.position.moves)
    node.apply(1)
    node.replica.catch_up()
    assert node.items() == ("0", "1")


def test_what_was_flushed_before_it_was_looked_at_shows(node: Node) -> None:
    node.apply(0)
    node.replica.catch_up()
    node.apply(1)
    node.store.flush()  # the replica's memory holds the history as it was, in front of the file
    node.replica.catch_up()
    assert node.items() == ("0", "1")
    node.apply(2)
    node.store.flush()
    node.position.publish(node.store.apply(Batch(users=[("v", b"{}")])))  # nothing of the histories' own
    node.replica.catch_up()
    assert node.items() == ("0", "1", "2")
    folders = (node.databases.parent / "replicas" / "r").glob("0*")
    assert [folder.name for folder in folders] == ["00000000-2"]  # opened anew once


def test_the_file_of_the_next_writer_is_mapped_where_the_one_before_was_removed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.apply(0)
    node.replica.catch_up()
    node.position.path.unlink()
    node.position.close()
    assert not node.replica.behind()  # there is nothing else to read
    node.position = Position.create(node.position.path)
    node.apply(1)
    monkeypatch.setattr("app.state.position._SILENT_MS", -1_000)  # as if the one before had been silent for long
    assert node.replica.behind()
    node.replica.catch_up()
    assert node.items() == ("0", "1")
    node.apply(2)
    monkeypatch.undo()
    assert node.replica.behind()
    node.replica.catch_up()
    assert node.items() == ("0", "1", "2")


def test_another_database_is_followed_while_others_read(node: Node) -> None:
    node.apply(0)
    node.replica.catch_up()
    stopped, wrong = threading.Event(), []

    def read() -> None:
        while not stopped.is_set():
            if (found := node.items()) not in {("0",), ("0", "1"), ("7",)}:
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    node.apply(1)
    node.replica.catch_up()
    node.store.close()
    choose_generation(node.databases, 1)
    node.open(1)
    node.store.outrun(node.position.moves)
    node.apply(7)
    assert node.replica.behind()
    node.replica.catch_up()
    stopped.set()
    for reader in readers:
        reader.join()
    assert node.items() == ("7",)
    assert not wrong
    remove_older(node.databases, 1)
    assert [path.name for path in sorted(node.databases.iterdir())] == ["00000001", "current"]
    node.replica.catch_up()
    assert node.items() == ("7",)


def test_failing_again_and_again_leaves_nothing_lying_about(node: Node, tmp_path: Path) -> None:
    node.apply(0)
    node.replica.catch_up()
    own = tmp_path / "replicas" / "r"
    there = sorted(own.glob("0*"))
    assert len(there) == 1
    for generation, promised in ((1, 1), (2, 10_000)):  # a database that is not there; one that is behind its position
        if generation == 2:
            node.store.close()
            node.open(2)
            node.store.apply(click(0))
        node.position.publish(Published({}, generation=generation, moves=promised))
        for _ in range(3):
            with pytest.raises(StateUnavailable):
                node.replica.catch_up()
        assert sorted(own.glob("0*")) == there
    assert node.items() == ("0",)  # what it has is still read
    node.position.publish(node.store.outrun(20_000))
    node.replica.catch_up()
    (now,) = own.glob("0*")
    assert now.name.startswith("00000002-")


def test_a_database_has_one_writer_at_a_time(node: Node) -> None:
    with pytest.raises(StateUnavailable, match="lock hold"):
        node.open(0)
    node.store.close()
    node.open(0)
    assert node.store.offsets() == {}
