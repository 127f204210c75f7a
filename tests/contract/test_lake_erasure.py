"""Erasure from the lake: no byte of the folder names the user afterwards, everything else is as it was."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException

from app.erasure.erased import TopicEnd
from app.erasure.places import Subject
from app.errors import MantaError
from app.events.columns import EVENT_COLUMNS
from app.events.entities import ENTITY_COLUMNS, latest_versions
from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import EVENTS, IMPRESSIONS, USERS
from app.lake import compaction, erase
from app.lake.commit import TopicOffsets, append, progress_of, replace
from app.lake.compaction import compact
from app.lake.erase import LakePlace, erase_rows
from app.lake.expiry import expire
from app.lake.maintenance import compact_tables, expire_tables
from app.lake.snapshot import snapshot
from app.lake.tables import Lake, open_lake
from app.settings import LakeSettings, Settings
from tests.search.files import files_with

SETTINGS = Settings(lake=LakeSettings(partition="month", max_open_partitions=3))
MONTH_US = 2_678_400_000_000
USER, SESSION = "0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f", "s-66f1c2d3e4b5a6978877665544332211"
MARK = USER[:16]  # so much of an id are bounds in manifests
PEOPLE: list[str | None] = ["other", USER, "yet another"]  # of all the first in order, so that bounds name the user
ENDS = {EVENTS: TopicEnd("id", {0: 100}), IMPRESSIONS: TopicEnd("id", {0: 100}), USERS: TopicEnd("id", {0: 100})}
SUBJECT = Subject("e-1", USER, (SESSION,), 0, ENDS)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return open_lake(SETTINGS, tmp_path)


def events(first: int, people: list[str | None], sessions: list[str | None] | None = None) -> pa.Table:
    """An event each, one a month."""
    rows = [
        {
            "event_id": f"e{first + place}",
            "user_id": user,
            "session_id": (sessions or [None] * len(people))[place],
            "event_type": "click",
            "event_time": place % 5 * MONTH_US + 1,
            "record_time": (first + place + 1) * 1_000_000,
            "topic": EVENTS,
            "partition": 0,
            "offset": first + place,
            "key": (user or "").encode(),
        }
        for place, user in enumerate(people)
    ]
    return pa.Table.from_pylist(rows, EVENT_COLUMNS)


def add(lake: Lake, name: str, rows: pa.Table) -> None:
    table = lake.table(name)
    progress = progress_of(table).moved(name, TopicOffsets("id", {0: int(rows["offset"].to_numpy().max()) + 1}))
    append(table, rows, progress, max_open_partitions=3)


def fill(lake: Lake) -> None:
    """Every table with the user among others, in many snapshots, compacted ones and forgotten ones too."""
    people = [*PEOPLE, None, None, *PEOPLE, "o", "p"]
    sessions = [None, None, None, SESSION, "visitor", None, SESSION, None, None, None]
    for first in (0, 10, 20):
        add(lake, EVENTS, events(first, people, sessions))
    compact(lake, EVENTS, target_bytes=1_000_000)
    expire(lake, EVENTS, keep_s=0, grace_s=3600, keep_most=2, now_ms=int(time.time() * 1000) + 60_000)
    lake.table(EVENTS).manage_snapshots().create_tag(lake.table(EVENTS).snapshots()[0].snapshot_id, "kept").commit()
    shown: list[dict[str, object]] = [
        {"request_id": f"r{place}", "user_id": user, "time": MONTH_US, "topic": IMPRESSIONS, "partition": 0}
        | {"offset": place, "record_time": 1_000_000, "items": [], "extra": None}
        for place, user in enumerate(PEOPLE)
    ]
    add(lake, IMPRESSIONS, pa.Table.from_pylist(shown, IMPRESSION_COLUMNS))
    for offset, columns in ((0, '{"a":1}'), (1, None)):
        one = {"user_id": USER, "available": columns is not None, "columns": columns, "topic": USERS, "partition": 0}
        changes = [one | {"offset": offset}, one | {"user_id": "other", "available": True, "offset": 5}]
        rows = pa.Table.from_pylist([row | {"record_time": 1} for row in changes], ENTITY_COLUMNS[USERS])
        progress = progress_of(lake.table(USERS)).moved(USERS, TopicOffsets("id", {0: 6}))
        replace(lake.table(USERS), latest_versions(USERS, snapshot(lake, USERS).read(), rows), progress)


def others(lake: Lake) -> dict[str, pa.Table]:
    """Everything that must stay, in one order."""
    found = {}
    for name in (EVENTS, IMPRESSIONS, USERS):
        rows = snapshot(lake, name).read()
        found[name] = rows.filter(pa.array(~SUBJECT.owns(rows))).sort_by("offset")
    return found


def unchanged(lake: Lake, before: dict[str, pa.Table], home: Path) -> None:
    assert files_with(home, MARK, SESSION[:16]) == [], "the id stands somewhere"
    for name, rows in before.items():
        now = snapshot(lake, name)
        assert now.read().sort_by("offset") == rows
        assert now.progress.topics[name].next == {0: {EVENTS: 30, IMPRESSIONS: 3, USERS: 6}[name]}


def test_no_byte_names_the_user_and_everything_else_stays(lake: Lake, tmp_path: Path) -> None:
    fill(lake)
    before = others(lake)
    assert len({path.suffix for path in files_with(tmp_path, MARK)}) == 2, (
        "in data files and in the bounds of manifests"
    )
    reports = LakePlace(SETTINGS, tmp_path).clear(SUBJECT)
    assert [report.place for report in reports] == ["lake: events", "lake: impressions", "lake: users"]
    assert all(report.cleared and USER not in report.detail for report in reports)
    unchanged(lake, before, tmp_path)
    assert [row["user_id"] for row in snapshot(lake, USERS).read().to_pylist()] == ["other"]
    add(lake, EVENTS, events(30, ["other"]))
    assert LakePlace(SETTINGS, tmp_path).clear(SUBJECT)[0].detail.startswith("0 rows left out of 0 files, 0 snapshots")
    assert snapshot(lake, EVENTS).rows == len(before[EVENTS]) + 1


class Killed(BaseException):
    pass


def test_killed_anywhere_the_next_run_goes_on(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake)
    before = others(lake)
    for point, times in (("written", 1), ("committed", 1), ("forgotten", 1), ("removing", 1), ("removing", 9)):
        reached: list[str] = []

        def reach(name: str, reached: list[str] = reached, point: str = point, times: int = times) -> None:
            reached.append(name)
            if reached.count(f"erase:{point}") == times:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(erase, "reach", reach)
            with pytest.raises(Killed):
                erase_rows(lake, EVENTS, SUBJECT)
        assert others(lake) == before
    LakePlace(SETTINGS, tmp_path).clear(SUBJECT)
    unchanged(lake, before, tmp_path)


def test_what_came_after_the_erasure_stays(lake: Lake, tmp_path: Path) -> None:
    add(lake, EVENTS, events(98, [USER, USER, USER, "other"]))
    add(lake, EVENTS, events(102, [USER]))
    done = erase_rows(lake, EVENTS, SUBJECT)
    assert done.rows == 2
    assert set(snapshot(lake, EVENTS).read(["offset"])["offset"].to_pylist()) == {100, 101, 102}
    assert erase_rows(lake, EVENTS, SUBJECT).rows == 0


def test_rows_that_have_no_offset_of_the_topic_go_by_their_arrival(lake: Lake) -> None:
    """Imported ones, and those of a topic that was made anew since."""
    add(lake, EVENTS, events(200, [USER, USER, USER]))
    until = Subject("e-1", USER, (), 203_000, ENDS)  # record times are 201, 202 and 203 s
    assert erase_rows(lake, EVENTS, until).rows == 2
    assert snapshot(lake, EVENTS).read(["offset"])["offset"].to_pylist() == [202]


def test_beside_an_ingest_one_wins_and_the_other_looks_again(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, EVENTS, events(0, PEOPLE))
    ours, real = lake.table(EVENTS), erase.rewrite_without  # type: ignore[attr-defined]
    more: Iterator[list[str | None]] = iter([[USER, "x"], [USER]])

    def rewrite(*rest: Any) -> int:
        for people in more:
            add(lake, EVENTS, events(progress_of(lake.table(EVENTS)).topics[EVENTS].next[0], people))
            break
        return int(real(*rest))

    monkeypatch.setattr(erase, "rewrite_without", rewrite)
    done = erase_rows(lake, EVENTS, SUBJECT)
    assert (done.lost_commits, done.rows) == (2, 3)
    assert files_with(tmp_path, MARK) == []
    assert snapshot(lake, EVENTS).rows == len(PEOPLE) - 1 + 1
    with pytest.raises(CommitFailedException):  # an ingest that had loaded the table before, and read the user's events
        append(ours, events(4, [USER]), progress_of(ours), max_open_partitions=3)
    assert files_with(tmp_path, MARK) == [], "what could not be committed lies there still"


def test_even_where_no_row_is_found_a_commit_that_was_prepared_before_fails(lake: Lake, tmp_path: Path) -> None:
    ours = lake.table(EVENTS)
    assert erase_rows(lake, EVENTS, SUBJECT).rows == 0
    with pytest.raises(CommitFailedException):
        append(ours, events(0, [USER]), progress_of(ours), max_open_partitions=3)
    assert files_with(tmp_path, MARK) == []


def test_a_compaction_under_way_brings_nothing_back(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (0, 10):
        add(lake, EVENTS, events(first, ["other", USER, "other"]))
    real, begun = compaction.one_file, iter([True])  # type: ignore[attr-defined]

    def merged(*rest: Any) -> Any:
        made = real(*rest)
        if next(begun, False):
            erase_rows(lake, EVENTS, SUBJECT)
        return made

    monkeypatch.setattr(compaction, "one_file", merged)
    compact(lake, EVENTS, target_bytes=1_000_000)
    assert files_with(tmp_path, MARK) == []
    assert sorted(snapshot(lake, EVENTS).read(["offset"])["offset"].to_pylist()) == [0, 2, 10, 12]


def test_what_killed_writers_left_goes_and_what_is_being_written_is_waited_for(lake: Lake, tmp_path: Path) -> None:
    add(lake, EVENTS, events(0, ["other", USER]))
    folder = Path(lake.table(EVENTS).location().removeprefix("file://"))
    data = next(path for path in (folder / "data").rglob("*.parquet") if USER.encode() in path.read_bytes())
    whole, torn = data.with_name("whole.parquet"), data.with_name("torn.parquet")
    shutil.copy(data, whole)
    torn.write_bytes(data.read_bytes()[:-4])
    os.utime(torn, (1, 1))
    manifest = next(path for path in (folder / "metadata").glob("*.avro") if not path.name.startswith("snap-"))
    half = manifest.with_name("half-m0.avro")
    half.write_bytes(manifest.read_bytes()[:-20])
    with pytest.raises(MantaError, match="a manifest is being written"):
        erase_rows(lake, EVENTS, SUBJECT)
    assert [path.exists() for path in (torn, whole)] == [True, True], "manifests go first"
    os.utime(half, (1, 1))
    erase_rows(lake, EVENTS, SUBJECT)
    assert [path.exists() for path in (half, torn, whole)] == [False, False, False]
    assert files_with(tmp_path, MARK) == []
    assert snapshot(lake, EVENTS).rows == 1


def test_an_unfinished_file_is_waited_for_as_long_as_it_is_written_to(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, EVENTS, events(0, ["other", USER]))
    folder = Path(lake.table(EVENTS).location().removeprefix("file://"))
    data = next(path for path in (folder / "data").rglob("*.parquet") if USER.encode() in path.read_bytes())
    whole, growing = data.read_bytes(), data.with_name("growing.parquet")
    growing.write_bytes(whole[:100])
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        growing.write_bytes(whole[: 100 + 50 * len(pauses)] if len(pauses) < 4 else whole)

    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", sleep)
        erase_rows(lake, EVENTS, SUBJECT)
    assert len(pauses) == 4
    assert not growing.exists(), "it was looked at once it was whole"
    real = erase.rewrite_without  # type: ignore[attr-defined]

    def rewrite(*rest: Any) -> int:
        growing.write_bytes(whole[:100])  # begun behind the look at the folder: its writer may commit yet
        return int(real(*rest))

    monkeypatch.setattr(erase, "rewrite_without", rewrite)
    with pytest.raises(MantaError, match="a file is being written"):
        erase_rows(lake, EVENTS, SUBJECT, still_s=0.0)
    assert growing.exists()


def test_maintenance_that_an_erasure_takes_files_from_says_so(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    add(lake, EVENTS, events(0, PEOPLE))
    loaded = lake.table(EVENTS)
    erase_rows(lake, EVENTS, SUBJECT)
    monkeypatch.setattr(Lake, "table", lambda *_: loaded)  # as it was before
    for run in (compact_tables, expire_tables):
        with pytest.raises(MantaError, match="an erasure is at work; try again"):
            list(run(lake, [EVENTS]))
