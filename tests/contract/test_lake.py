"""The lake as a store: rows and offsets in one commit, one of two writers wins, bounded files, any reader."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.exceptions import CommitFailedException

from app.errors import MantaError
from app.events.columns import EVENT_COLUMNS
from app.events.entities import ENTITY_COLUMNS, latest_versions
from app.events.rows import FIRST_ARRIVAL
from app.events.schema import EVENTS, ITEMS, USERS
from app.lake.commit import Progress, TopicOffsets, append, gap_record, progress_of, replace
from app.lake.identities import accepted_events
from app.lake.snapshot import export, snapshot
from app.lake.tables import Lake, open_lake
from app.settings import LakeSettings, Settings

MONTH_US = 2_678_400_000_000


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return open_lake(Settings(lake=LakeSettings(partition="month", max_open_partitions=3)), tmp_path)


def events(months: list[int], first: int = 0) -> pa.Table:
    """One event a month number, with the offsets from `first`."""
    rows = [
        {
            "event_id": f"e{first + place}",
            "user_id": "u",
            "event_type": "click",
            "event_time": month * MONTH_US + 1,
            "record_time": (first + place) * 1_000_000,
            "topic": EVENTS,
            "partition": 0,
            "offset": first + place,
        }
        for place, month in enumerate(months)
    ]
    return pa.Table.from_pylist(rows, EVENT_COLUMNS)


def add(lake: Lake, rows: pa.Table, end: int, gaps: tuple[dict[str, Any], ...] = ()) -> None:
    table = lake.table(EVENTS)
    progress = progress_of(table).moved(EVENTS, TopicOffsets("id", {0: end}), gaps)
    append(table, rows, progress, max_open_partitions=lake.settings.max_open_partitions)


def test_rows_and_offsets_come_together_and_stay_with_every_snapshot(lake: Lake) -> None:
    assert snapshot(lake, EVENTS).progress == Progress()
    add(lake, events([1, 2]), 2)
    add(lake, events([], 2), 9, (gap_record(EVENTS, 0, 2, 9, "retention"),))
    now = snapshot(lake, EVENTS)
    assert now.progress.topics == {EVENTS: TopicOffsets("id", {0: 9})}
    assert now.progress.gaps[0]["from"] == 2
    assert now.rows == 2
    assert all("manta.offsets" in one.summary.additional_properties for one in now.source.snapshots())


def test_of_two_writers_one_wins_and_nothing_of_the_other_stays(lake: Lake) -> None:
    lake.table(EVENTS)
    first, second = lake.table(EVENTS), lake.table(EVENTS)
    progress = Progress().moved(EVENTS, TopicOffsets("id", {0: 2}))
    append(first, events([1, 2]), progress, max_open_partitions=3)
    with pytest.raises(CommitFailedException):
        append(second, events([1, 2]), progress, max_open_partitions=3)
    assert snapshot(lake, EVENTS).read(["offset"])["offset"].to_pylist() == [0, 1]


def test_files_are_bounded_and_stragglers_lie_together(lake: Lake) -> None:
    months = [*range(20), 5, 5, 5, 9, 9]
    add(lake, events(months), len(months))
    now = snapshot(lake, EVENTS)
    assert sorted(part.rows for part in now.files()) == [3, 4, 18]
    assert sorted(now.read(["offset"])["offset"].to_pylist()) == list(range(len(months)))
    some = now.read(["event_time"], start_us=5 * MONTH_US, end_us=6 * MONTH_US)
    assert len(some) == 4


def test_a_snapshot_stays_what_it_was(lake: Lake) -> None:
    add(lake, events([1]), 1)
    before = snapshot(lake, EVENTS)
    add(lake, events([1], 1), 2)
    assert before.rows == 1
    assert len(before.read()) == 1


def test_identities_in_a_range_of_arrival(lake: Lake) -> None:
    add(lake, events([1] * 10), 10)
    found = [time for _, times in accepted_events(snapshot(lake, EVENTS), 3_000, 6_000) for time in times.tolist()]
    assert sorted(found) == [3_000, 4_000, 5_000]


def version(topic: str, name: str, columns: str | None, offset: int) -> pa.Table:
    row = {ENTITY_COLUMNS[topic].names[0]: name, "available": columns is not None, "columns": columns}
    return pa.Table.from_pylist([row | {"offset": offset, "partition": 0, "topic": topic}], ENTITY_COLUMNS[topic])


@pytest.mark.parametrize(("topic", "kept"), [(ITEMS, '{"a":2}'), (USERS, None)])
def test_the_latest_version_stands_and_a_withdrawn_item_keeps_its_columns(
    lake: Lake, topic: str, kept: str | None
) -> None:
    changes = [version(topic, "1", '{"a":1}', 0), version(topic, "1", '{"a":2}', 1), version(topic, "1", None, 2)]
    for change in changes:
        table = lake.table(topic)
        now = snapshot(lake, topic).read()
        replace(table, latest_versions(topic, now, change), Progress().moved(topic, TopicOffsets("", {0: 3})))
    (row,) = snapshot(lake, topic).read().to_pylist()
    assert (row["available"], row["columns"], row["offset"]) == (False, kept, 2)


@pytest.mark.parametrize("at_once", [True, False])
def test_of_versions_in_two_partitions_the_one_that_arrived_last_stands(at_once: bool) -> None:
    schema = ENTITY_COLUMNS[ITEMS]
    place = {"item_id": "1", "topic": ITEMS}
    new = {"available": True, "columns": '{"a":2}', "partition": 0, "offset": 0, "record_time": 9_000_000}
    old = {"available": True, "columns": '{"a":1}', "partition": 3, "offset": 7, "record_time": 8_000_000}
    gone = {"available": False, "columns": None, "partition": 0, "offset": 1, "record_time": 9_500_000}
    other = pa.Table.from_pylist([place | old | {"item_id": "2"}], schema)
    for first, wanted in ((new, '{"a":2}'), (gone, '{"a":1}')):
        versions = [pa.Table.from_pylist([place | row], schema) for row in (first, old)]
        stood = other
        for change in [pa.concat_tables(versions)] if at_once else versions:
            stood = latest_versions(ITEMS, stood, change)
        found = {row["item_id"]: row for row in stood.to_pylist()}
        assert (found["1"]["available"], found["1"]["columns"]) == (first["available"], wanted)
        assert found["2"] == other.to_pylist()[0]


def test_export_writes_every_table(lake: Lake, tmp_path: Path) -> None:
    add(lake, events([1, 7]), 2)
    assert export(lake, tmp_path / "out") == {"events": 2, "figures": 0, "impressions": 0, "items": 0, "users": 0}
    assert pq.read_table(tmp_path / "out" / "events")["event_id"].to_pylist() == ["e0", "e1"]
    assert pq.read_table(tmp_path / "out" / "items").schema.names[:3] == ["item_id", "available", "columns"]


def test_another_partition_than_the_table_has_is_refused(lake: Lake, tmp_path: Path) -> None:
    add(lake, events([1]), 1)
    other = open_lake(Settings(lake=LakeSettings(partition="day")), tmp_path)
    with pytest.raises(MantaError, match="found table events partitioned by month, wanted day"):
        other.table(EVENTS)


def test_an_arrival_at_the_beginning_of_the_calendar_stops_nobody_from_looking_before_it(lake: Lake) -> None:
    """A clock that stands at nothing: from there back there is no day that Iceberg could be asked for."""
    rows = events([1, 2])
    first = pa.array([FIRST_ARRIVAL * 1000] * 2, rows.schema.field("record_time").type)
    add(lake, rows.set_column(rows.schema.get_field_index("record_time"), "record_time", first), 2)
    found = list(accepted_events(snapshot(lake, EVENTS), FIRST_ARRIVAL - 7 * 86_400_000, None))
    assert [time for _, times in found for time in times.tolist()] == [FIRST_ARRIVAL] * 2
