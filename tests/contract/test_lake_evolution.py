"""A lake made by an older Manta takes today's rows, and its own rows stay readable."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import IMPRESSIONS
from app.lake import tables
from app.lake.commit import Progress, TopicOffsets, append, progress_of
from app.lake.compaction import compact
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.settings import LakeSettings, Settings

# As it was before an item said which sources named it, and before features were logged.
OLD_ITEM = pa.struct([("item_id", pa.string()), ("position", pa.int32()), ("score", pa.float64())])
OLD = pa.schema(
    [
        field if field.name != "items" else pa.field("items", pa.list_(OLD_ITEM))
        for field in IMPRESSION_COLUMNS
        if field.name not in ("features", "feature_names")
    ]
)
SETTINGS = Settings(lake=LakeSettings(partition="month"))


def row(offset: int, **more: Any) -> dict[str, Any]:
    item = {"item_id": "1", "position": 1, "score": 0.5}
    place = {"partition": 0, "offset": offset, "record_time": offset}
    return {
        "request_id": f"r{offset}",
        "surface": "home",
        "time": 1_700_000_000_000_000,
        "items": [item],
        **place,
        **more,
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With one impression, written by the older Manta."""
    with monkeypatch.context() as older:
        older.setitem(tables.TABLES, IMPRESSIONS, OLD)
        table = open_lake(SETTINGS, tmp_path).table(IMPRESSIONS)
        progress = Progress().moved(IMPRESSIONS, TopicOffsets("id", {0: 1}))
        append(table, pa.Table.from_pylist([row(0)], OLD), progress, max_open_partitions=5)
    return tmp_path


def test_an_older_table_gets_the_columns_and_keeps_its_rows_and_offsets(home: Path) -> None:
    lake = open_lake(SETTINGS, home)
    before = snapshot(lake, IMPRESSIONS)
    assert before.progress.topics[IMPRESSIONS].next == {0: 1}
    (read,) = before.read().to_pylist()
    assert (read["items"][0]["item_id"], read["items"][0]["sources"], read["features"]) == ("1", None, None)
    new = row(1, feature_names=["a", "b"], features=[[0.5, 1.25]])
    new["items"][0]["sources"] = ["ease"]
    table = lake.table(IMPRESSIONS)
    append(table, pa.Table.from_pylist([new], IMPRESSION_COLUMNS), progress_of(table), max_open_partitions=5)
    assert compact(lake, IMPRESSIONS, target_bytes=1_000_000).files_after == 1
    rows = snapshot(lake, IMPRESSIONS).read().sort_by("offset").to_pylist()
    assert [one["features"] for one in rows] == [None, [[0.5, 1.25]]]
    assert [one["items"][0]["sources"] for one in rows] == [None, ["ease"]]
    assert rows[0]["arrival_time"] is None
    assert abs((datetime.now(UTC) - rows[1]["arrival_time"]).total_seconds()) < 600
    by_id = replace(snapshot(lake, IMPRESSIONS), id=before.id)
    assert by_id.read(["request_id", "features"]).to_pylist() == [{"request_id": "r0", "features": None}]


def test_of_two_that_add_them_at_once_both_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, real = open_lake(SETTINGS, home), Table.update_schema
    others: list[Callable[[], object]] = [lambda: open_lake(SETTINGS, home).table(IMPRESSIONS)]

    def another_first(self: Table, **options: Any) -> Any:
        if others:
            others.pop()()
        return real(self, **options)

    monkeypatch.setattr(Table, "update_schema", another_first)
    assert set(IMPRESSION_COLUMNS.names) <= set(lake.table(IMPRESSIONS).schema().column_names)
