"""Compaction and expiry: the same rows and offsets afterwards, readers in flight unharmed, nothing left lying about."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import FileInfo, FileType
from pyiceberg.table import Table
from typer.testing import CliRunner

from app.errors import MantaError
from app.events.columns import EVENT_COLUMNS
from app.events.schema import EVENTS, ITEMS
from app.lake import compaction, data_files
from app.lake.commit import OFFSETS, Progress, TopicOffsets, append, gap_record, progress_of
from app.lake.compaction import compact
from app.lake.expiry import expire
from app.lake.files import _modified_ms
from app.lake.snapshot import snapshot
from app.lake.tables import TABLES, Lake, open_lake
from app.settings import LakeSettings, Settings
from scripts.cli import app as manta

MONTH_US = 2_678_400_000_000
TARGET = 1_000_000
HOUR_S = 3600.0


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return open_lake(Settings(lake=LakeSettings(partition="month", max_open_partitions=3)), tmp_path)


def events(months: list[int], first: int) -> pa.Table:
    """One event a month number, with the offsets from `first`."""
    rows = [
        {
            "event_id": f"e{first + place}",
            "user_id": "ü",
            "event_type": "click",
            "event_time": month * MONTH_US + 1,
            "record_time": (first + place) * 1_000_000,
            "value": 0.5,
            "topic": EVENTS,
            "partition": 0,
            "offset": first + place,
        }
        for place, month in enumerate(months)
    ]
    return pa.Table.from_pylist(rows, EVENT_COLUMNS)


def add(lake: Lake, months: list[int]) -> None:
    """One commit behind those that are there."""
    table = lake.table(EVENTS)
    progress = progress_of(table)
    first = progress.topics.get(EVENTS, TopicOffsets("", {0: 0})).next[0]
    gaps = () if first else (gap_record(EVENTS, 1, 0, 9, "retention"),)
    moved = progress.moved(EVENTS, TopicOffsets("id", {0: first + len(months)}), gaps)
    append(table, events(months, first), moved, max_open_partitions=lake.settings.max_open_partitions)


def rows(lake: Lake) -> list[dict[str, object]]:
    found: list[dict[str, object]] = snapshot(lake, EVENTS).read().sort_by("offset").to_pylist()
    return found


def on_disk(lake: Lake) -> set[str]:
    """Every file of the table's folder."""
    folder = Path(lake.table(EVENTS).location().removeprefix("file://"))
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def later(hours: float) -> int:
    return int((time.time() + hours * HOUR_S) * 1000)


def test_small_files_of_a_partition_become_one_and_rows_and_offsets_stay(lake: Lake) -> None:
    for months in ([1, 2], [2, 1], [1, 3, 4, 5, 6], [7, 7, 8, 9, 9]):
        add(lake, months)
    before, progress = rows(lake), snapshot(lake, EVENTS).progress
    done = compact(lake, EVENTS, target_bytes=TARGET)
    now = snapshot(lake, EVENTS)
    assert rows(lake) == before
    assert now.progress == progress
    assert progress.topics == {EVENTS: TopicOffsets("id", {0: 14})}
    assert len(progress.gaps) == 1
    tasks = list(now.source.scan().plan_files())
    places = [(task.file.spec_id, repr(task.file.partition)) for task in tasks]
    assert len(places) == len(set(places)), "one file a partition, stragglers together"
    assert (done.files_after, done.commits) == (len(tasks), 1)
    assert done.merged > done.files_before - done.files_after > 0
    current = now.source.current_snapshot()
    assert current.summary.operation.value == "replace"
    assert current.summary["total-data-files"] == str(len(tasks))
    assert len(current.manifests(now.source.io)) <= 4
    assert compact(lake, EVENTS, target_bytes=TARGET).commits == 0
    some = now.read(["event_time"], start_us=7 * MONTH_US, end_us=8 * MONTH_US)
    assert len(some) == 2


def test_a_merged_file_says_what_arrived_in_it_wherever_its_row_groups_end(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_files, "_GROUP_ROWS", 2)  # the last one ends with the rows: an empty one has no bounds
    add(lake, [1, 1])
    add(lake, [1, 1])
    compact(lake, EVENTS, target_bytes=TARGET)
    table = lake.table(EVENTS)
    (task,) = table.scan().plan_files()
    assert task.file.record_count == 4
    assert table.schema().find_field("record_time").field_id in (task.file.lower_bounds or {})


def test_files_of_the_wanted_size_are_left_alone_and_bins_are_bounded(lake: Lake) -> None:
    for _ in range(5):
        add(lake, [1])
    tasks = list(lake.table(EVENTS).scan().plan_files())
    size = max(task.file.file_size_in_bytes for task in tasks)
    assert list(compaction.bins(lake.table(EVENTS), tasks, int(size / 0.8))) == []
    cut = list(compaction.bins(lake.table(EVENTS), tasks, int(size * 1.5)))
    assert [len(part) for part in cut] == [2, 2]
    arrivals = [task.file.file_path for part in cut for task in part]
    assert arrivals == [task.file.file_path for task in reversed(tasks)][:4]


def test_an_ingest_that_commits_meanwhile_loses_nothing_and_the_merged_files_are_not_read_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for months in ([1, 1], [1], [2, 2], [2]):
        add(lake, months)
    ours = lake.table(EVENTS)
    append_before = iter([[1], [2]])
    real = compaction.rewrite  # type: ignore[attr-defined]

    def rewrite(table: Table, *rest: object) -> int:
        for months in append_before:
            add(lake, months)
            break
        return int(real(table, *rest))  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "rewrite", rewrite)
    done = compact(lake, EVENTS, target_bytes=TARGET)
    assert (done.lost_commits, done.commits) == (2, 1)
    assert [row["offset"] for row in rows(lake)] == list(range(8))
    assert snapshot(lake, EVENTS).progress.topics[EVENTS].next == {0: 8}
    # And the ingest that had loaded the table before loses its commit
    with pytest.raises(Exception, match="branch main"):
        append(ours, events([1], 6), Progress(), max_open_partitions=3)


def test_two_compactions_at_once_merge_each_file_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for months in ([1, 1], [1], [2]):
        add(lake, months)
    before, others = rows(lake), iter([True])
    real = compaction.rewrite  # type: ignore[attr-defined]

    def rewrite(table: Table, *rest: object) -> int:
        if next(others, False):
            compact(lake, EVENTS, target_bytes=TARGET)
        return int(real(table, *rest))  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "rewrite", rewrite)
    assert compact(lake, EVENTS, target_bytes=TARGET).commits == 0
    assert rows(lake) == before


def test_a_reader_that_has_planned_reads_everything_until_its_grace_ends(lake: Lake) -> None:
    for months in ([1, 1], [1], [2]):
        add(lake, months)
    reader, before = snapshot(lake, EVENTS), rows(lake)
    parts = reader.files()
    compact(lake, EVENTS, target_bytes=TARGET)
    # Long superseded, forgotten now: its files are read for another hour
    report = expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(3))
    assert (report.snapshots, report.snapshots_left, report.files) == (3, 1, 0)
    assert report.waiting > 0
    assert len(reader.read()) == len(before)
    expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(3.5))
    assert all(Path(part.path.removeprefix("file://")).exists() for part in parts)
    assert len(reader.read()) == len(before)
    report = expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(4.5))
    assert report.files > 0
    assert not all(Path(part.path.removeprefix("file://")).exists() for part in parts)
    assert rows(lake) == before
    assert snapshot(lake, EVENTS).progress.topics == {EVENTS: TopicOffsets("id", {0: 4})}


def test_a_superseded_snapshot_stays_as_long_as_the_settings_say_and_a_named_one_for_good(lake: Lake) -> None:
    add(lake, [1])
    first = snapshot(lake, EVENTS)
    assert first.id is not None
    lake.table(EVENTS).manage_snapshots().create_tag(first.id, "kept").commit()
    for _ in range(3):
        add(lake, [1])
    assert expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(0.9)).snapshots == 0
    assert expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(1.1)).snapshots == 2
    table = lake.table(EVENTS)
    assert len(table.scan(snapshot_id=first.id).to_arrow()) == 1
    assert progress_of(table).topics[EVENTS].next == {0: 4}
    add(lake, [1])
    assert [row["offset"] for row in rows(lake)] == list(range(5))


def test_of_too_many_snapshots_the_newest_stay_however_young(lake: Lake) -> None:
    for _ in range(6):
        add(lake, [1])
    newest = sorted(lake.table(EVENTS).snapshots(), key=lambda one: one.sequence_number)[-2:]
    report = expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, keep_most=2)
    assert (report.snapshots, report.snapshots_left, report.files) == (4, 2, 0)
    assert {one.snapshot_id for one in lake.table(EVENTS).snapshots()} == {one.snapshot_id for one in newest}
    assert progress_of(lake.table(EVENTS)).topics[EVENTS].next == {0: 6}


def test_what_a_killed_writer_left_goes_and_what_a_commit_under_way_has_written_stays(lake: Lake) -> None:
    add(lake, [1])
    table = lake.table(EVENTS)
    folder = Path(table.location().removeprefix("file://"))
    orphan = folder / "data" / "event_time_part=1970-02" / "left.parquet"
    orphan.write_bytes(b"x")
    stood = on_disk(lake) - {str(orphan)}
    assert expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(0.9)).files == 0
    assert orphan.exists()
    assert expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(1.1)).files == 1
    assert on_disk(lake) == stood


def test_a_file_of_unknown_age_is_young() -> None:
    before = time.time() * 1000
    assert _modified_ms(FileInfo("data/1.parquet", FileType.File, size=1)) >= int(before)


def test_everything_that_is_left_is_referred_to(lake: Lake) -> None:
    for _ in range(4):
        add(lake, [1, 2, 3, 4, 5])
        compact(lake, EVENTS, target_bytes=TARGET)
    for hours in (2, 4, 6):
        expire(lake, EVENTS, keep_s=HOUR_S, grace_s=HOUR_S, now_ms=later(hours))
    table = lake.table(EVENTS)
    data = [path for path in on_disk(lake) if path.endswith(".parquet")]
    assert len(data) == len(list(table.scan().plan_files()))
    assert len([path for path in on_disk(lake) if path.endswith(".avro")]) == 1 + len(
        table.current_snapshot().manifests(table.io)
    )


def test_offsets_outlive_expiry_when_another_program_made_the_last_snapshot(lake: Lake) -> None:
    add(lake, [1])
    stood = snapshot(lake, EVENTS).progress
    lake.table(EVENTS).append(events([2], 1))
    report = expire(lake, EVENTS, keep_s=0, grace_s=HOUR_S, now_ms=later(1))
    assert report.snapshots == 2
    now = snapshot(lake, EVENTS)
    assert now.progress == stood
    assert OFFSETS in now.source.current_snapshot().summary.additional_properties
    assert now.rows == 2


def test_a_table_whose_offsets_another_program_has_expired_is_not_read_from_the_start(lake: Lake) -> None:
    add(lake, [1])
    first = snapshot(lake, EVENTS)
    table = lake.table(EVENTS)
    table.append(events([2], 1))
    assert first.id is not None
    table.maintenance.expire_snapshots().by_id(first.id).commit()
    with pytest.raises(MantaError, match="wanted those up to which the table was read"):
        snapshot(lake, EVENTS)


def test_an_empty_table_has_nothing_to_do(lake: Lake) -> None:
    assert compact(lake, ITEMS, target_bytes=TARGET).files_after == 0
    assert expire(lake, ITEMS, keep_s=0, grace_s=HOUR_S).snapshots == 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MANTA_LAKE__PARTITION", "month")
    monkeypatch.setenv("MANTA_LAKE__KEEP_SNAPSHOTS_H", "0")
    return tmp_path / "home"


def test_the_commands(home: Path) -> None:
    lake = open_lake(Settings(lake=LakeSettings(partition="month")), home)
    for _ in range(3):
        add(lake, [1, 1])
    run = CliRunner()
    found = run.invoke(manta, ["lake", "compact", "--json"])
    assert found.exit_code == 0, found.output
    document = {row["table"]: row for row in json.loads(found.stdout)["tables"]}
    assert set(document) == set(TABLES)
    assert (document[EVENTS]["files_before"], document[EVENTS]["files_after"]) == (3, 1)
    found = run.invoke(manta, ["lake", "expire", "--table", "events", "--json"])
    (row,) = json.loads(found.stdout)["tables"]
    assert (row["snapshots"], row["snapshots_left"]) == (3, 1)
    stats = json.loads(run.invoke(manta, ["lake", "stats", "--json"]).stdout)["tables"]
    assert [(one["rows"], one["files"], one["snapshots"]) for one in stats if one["table"] == EVENTS] == [(6, 1, 1)]
    wrong = run.invoke(manta, ["lake", "compact", "--table", "nonsense"])
    assert "wanted one of events" in str(wrong.exception)
