"""The shared position."""

from pathlib import Path

import pytest

from app.errors import StateUnavailable
from app.state.position import Position, Published


def test_what_is_published_is_read_by_another_mapping(tmp_path: Path) -> None:
    writer = Position.create(tmp_path / "state" / "position")
    reader = Position.open(tmp_path / "state" / "position")
    assert (reader.moves, reader.heartbeat_ms) == (0, 0)
    said = Published({"events": {0: 7, 300: 9}, "items": {1: 5}, "users": {}}, 12, 1_700_000_000_000, 3, 44)
    writer.publish(said)
    assert reader.offsets() == said.offsets
    assert (reader.moves, reader.item_sequence, reader.generation) == (44, 12, 3)
    assert reader.watermark == 1_700_000_000_000
    assert (reader.applied("events", 300), reader.applied("users", 0)) == (9, 0)
    assert reader.heartbeat_ms > 1_700_000_000_000


def test_the_next_writer_goes_on_with_the_file_that_readers_have_mapped(tmp_path: Path) -> None:
    Position.create(tmp_path / "position").publish(Published({"events": {0: 1}}, moves=1))
    reader = Position.open(tmp_path / "position")
    Position.create(tmp_path / "position").publish(Published({"events": {0: 2}}, moves=2))
    assert (reader.moves, reader.applied("events", 0)) == (2, 2)


def test_a_file_that_was_removed_is_put_back_by_the_writer_as_it_stood(tmp_path: Path) -> None:
    writer = Position.create(tmp_path / "position")
    writer.publish(Published({"events": {0: 1}}, moves=1))
    (tmp_path / "position").unlink()
    writer.restore()
    reader = Position.open(tmp_path / "position")
    assert (reader.moves, reader.applied("events", 0)) == (1, 1)
    writer.restore()
    writer.publish(Published({"events": {0: 2}}, moves=2))
    assert (reader.moves, reader.is_replaced()) == (2, False)


def test_no_writer_yet_and_a_file_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="cannot be read"):
        Position.open(tmp_path / "position")
    (tmp_path / "position").write_bytes(bytes(1 << 20))
    with pytest.raises(StateUnavailable, match="layout"):
        Position.open(tmp_path / "position")


def test_a_reader_that_sees_the_move_sees_the_items_and_one_that_sees_an_offset_sees_the_move(tmp_path: Path) -> None:
    class Recorded(dict[int, int]):
        def __setitem__(self, word: int, value: int) -> None:
            super().pop(word, None)
            super().__setitem__(word, value)

    writer = Position.create(tmp_path / "position")
    words = writer._words
    seen = Recorded()
    writer._words = seen  # type: ignore[assignment]
    writer.publish(Published({"items": {0: 7_000_001}}, 7_000_002, 7_000_003, 1, 7_000_004))
    writer._words = words
    order = [value for value in seen.values() if 7_000_000 < value < 8_000_000]
    assert order == [7_000_002, 7_000_003, 7_000_004, 7_000_001]
