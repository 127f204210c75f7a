"""Versions of one item in several partitions, as a topic that got more partitions has them: lake and state agree."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.entities import ENTITY_COLUMNS, latest_versions
from app.events.schema import ITEMS
from app.events.versions import VersionPlace, stays
from app.settings import Settings
from app.state.batch import Batch
from app.state.items import changed_items, item_change
from app.state.memory import MemoryState
from app.state.store import StateStore

NOW = int(time.time() * 1000)
YEARS = 5 * 365 * 86_400_000
Version = tuple[int, int, int | None]  # partition, arrival, year; None: withdrawn


def in_lake(read: Sequence[Version], commit_each: bool) -> tuple[bool, Any]:
    stood = ENTITY_COLUMNS[ITEMS].empty_table()
    rows = [
        {
            "item_id": "i",
            "available": year is not None,
            "columns": None if year is None else orjson.dumps({"year": year}).decode(),
            "partition": partition,
            "record_time": arrived * 1000,
        }
        for partition, arrived, year in read
    ]
    for some in [[row] for row in rows] if commit_each else [rows]:
        stood = latest_versions(ITEMS, stood, pa.Table.from_pylist(some, ENTITY_COLUMNS[ITEMS]))
    (row,) = stood.to_pylist()
    return row["available"], orjson.loads(row["columns"] or b"{}")


def in_state(read: Sequence[Version], batch_each: bool) -> tuple[bool, Any]:
    held: dict[bytes, bytes] = {}
    pairs = [("i", None if year is None else orjson.dumps({"year": year})) for _, _, year in read]
    places = [VersionPlace(partition, arrived) for partition, arrived, _ in read]
    step, sequence = 1 if batch_each else len(read), 0

    def stored(keys: list[bytes]) -> list[bytes | None]:
        return [held.get(key) for key in keys]

    for start in range(0, len(read), step):
        end = start + step
        changes, sequence = changed_items(pairs[start:end], stored, sequence, places[start:end])
        held |= {key: record for (family, key), record in changes.items() if family == ITEMS and record}
    found = item_change("i", held[b"i"])
    return found.available, found.columns


# Of each partition, in its order: arrivals that rise, and a clock that may be years ahead in one message.
LOGS = st.lists(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([None, 1990, 2001]), st.booleans()), min_size=1, max_size=4),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(LOGS, st.randoms(use_true_random=False), st.booleans())
def test_lake_and_state_have_the_same_latest_version(logs: Any, random: Any, in_pieces: bool) -> None:
    waiting, read = [], []
    for partition, log in enumerate(logs):
        arrived, versions = NOW - 100_000, []
        for step, year, wrong in log:
            arrived += step
            versions.append((partition, arrived + YEARS * wrong, year))
        waiting.append(versions)
    while any(waiting):
        read.append(random.choice([versions for versions in waiting if versions]).pop(0))
    assert in_lake(read, in_pieces) == in_lake(read, not in_pieces) == in_state(read, in_pieces)


def test_what_arrived_last_holds_whichever_partition_is_read_first() -> None:
    old, new, gone = (0, NOW - 9, 1990), (3, NOW - 5, 2001), (3, NOW - 4, None)
    cases: list[tuple[list[Version], tuple[bool, int]]] = [
        ([old, new], (True, 2001)),
        ([old, new, gone], (False, 2001)),
    ]
    for read, wanted in cases:
        for order in (read, [*read[1:], read[0]]):
            found = in_state(order, True)
            assert (found[0], found[1]["year"]) == wanted
            assert in_lake(order, True) == found


@pytest.mark.parametrize("wrong_first", [True, False])
def test_a_version_of_a_wrong_clock_holds_against_none_of_another_partition(wrong_first: bool) -> None:
    wrong, right = (0, NOW + YEARS, 1990), (3, NOW - 5, 2001)
    read = [wrong, right] if wrong_first else [right, wrong]
    assert in_state(read, True) == in_lake(read, True) == (True, {"year": 2001})
    assert not stays(VersionPlace(0, NOW + YEARS), VersionPlace(0, NOW - 5), NOW), "in its own partition offsets count"


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_an_item_that_was_withdrawn_stays_so_when_its_old_partition_is_read_later(kind: str, tmp_path: Path) -> None:
    state = StateStore(tmp_path / "db", Settings()) if kind == "store" else MemoryState()
    new = [("i", b'{"year":2001}'), ("i", None)]
    state.apply(Batch(items=new, item_places=[VersionPlace(3, NOW - 5), VersionPlace(3, NOW - 4)]))
    state.apply(Batch(items=[("i", b'{"year":1990}')], item_places=[VersionPlace(0, NOW - 9)]))
    if isinstance(state, MemoryState):
        found = state.item("i")
    else:
        found = item_change("i", state._families[ITEMS].get(b"i"))
        state.close()
    assert found is not None
    assert (found.available, found.columns) == (False, {"year": 2001})
