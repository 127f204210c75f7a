"""A scan in pieces: every row once, and only a few files are read ahead of whoever takes them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pyiceberg.expressions import GreaterThanOrEqual
from pyiceberg.io.pyarrow import ArrowScan

from app.events.schema import EVENTS
from app.lake.scan import _AHEAD, pieces
from app.lake.tables import Lake, open_lake
from app.settings import LakeSettings, Settings
from tests.contract.test_lake import add, events

FILES = 8


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = open_lake(Settings(lake=LakeSettings(partition="month", max_open_partitions=3)), tmp_path)
    for number in range(FILES):
        add(lake, events([number, number], 2 * number), 2 * number + 2)
    return lake


def test_every_row_once_in_the_columns_and_under_the_condition_of_the_scan(lake: Lake) -> None:
    scan = lake.table(EVENTS).scan(row_filter=GreaterThanOrEqual("offset", 3), selected_fields=("offset", "user_id"))
    found = list(pieces(scan))
    assert {tuple(piece.schema.names) for piece in found} == {("user_id", "offset")}
    assert sorted(offset for piece in found for offset in piece["offset"].to_pylist()) == list(range(3, 2 * FILES))


def test_whoever_is_slow_holds_a_few_files_and_not_the_table(lake: Lake) -> None:
    opened: list[str] = []
    noted = threading.Condition()
    real = ArrowScan.to_record_batches

    def reading(scan: ArrowScan, tasks: list[Any]) -> Iterator[Any]:
        with noted:
            opened.extend(task.file.file_path for task in tasks)
            noted.notify()
        return iter(real(scan, tasks))

    with patch.object(ArrowScan, "to_record_batches", reading):
        some = pieces(lake.table(EVENTS).scan())
        next(some)
        with noted:
            assert noted.wait_for(lambda: len(opened) == _AHEAD + 1, 30)
        time.sleep(0.2)
        assert len(opened) == _AHEAD + 1
        assert len(list(some)) == FILES - 1
    assert len(opened) == len(set(opened)) == FILES


def test_a_file_that_cannot_be_read_is_no_end(lake: Lake) -> None:
    for task in lake.table(EVENTS).scan().plan_files():
        Path(task.file.file_path.removeprefix("file://")).unlink()
        break
    with pytest.raises(FileNotFoundError):
        list(pieces(lake.table(EVENTS).scan()))
