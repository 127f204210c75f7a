"""Rows straight into the lake: the events that Kafka would have brought, each once, wherever the import is killed."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.event_weights import by_type
from app.events import importing
from app.events.blocks import ReadBlock, block_hashes
from app.events.columns import RECORDS, decode
from app.events.import_sources import FileSource, Row
from app.events.importing import import_rows
from app.events.ranges import OffsetRange, TopicBounds
from app.events.schema import EVENTS, IMPORT_PARTITION, IMPORTED, ITEMS, USERS
from app.lake import bulk, ingest
from app.lake.bulk import import_into_lake
from app.lake.commit import Progress, TopicOffsets, append, progress_of
from app.lake.ingest import IngestJob
from app.lake.losses import make_good
from app.lake.snapshot import snapshot
from app.lake.tables import TABLES, Lake, open_lake
from app.settings import Settings
from app.state import rebuild
from app.state.history import entries_of
from app.state.layout import StatePaths, database
from tests.property.test_state import stored
from tune.dataset import counted, item_columns, training_set

CLICKS = by_type(click=1.0)
SETTINGS = Settings.model_validate(
    {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},  # nobody is asked
        "ingest": {"chunk_rows": 4},
        "lake": {"partition": "month", "max_open_partitions": 2},
        "events": {"dedup_days": 1},
    }
)
NAMES = {"who": "user_id", "what": "item_id", "stars": "value", "at": "event_time"}
STOOD = {EVENTS: TopicOffsets("id", {0: 7, 1: 3})}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake that has read some of Kafka."""
    lake = open_lake(SETTINGS, tmp_path)
    append(lake.table(EVENTS), TABLES[EVENTS].empty_table(), Progress(STOOD), max_open_partitions=2)
    return lake


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.events.import_sources._BATCH", 2)


def ratings(folder: Path, count: int = 10, name: str = "ratings.parquet", **more: list[Any]) -> FileSource:
    """Rows of ten months; the last but one has nobody."""
    rows = [
        {"who": row % 3, "what": f"i{row}", "stars": 1.0, "at": 1_400_000_000 + row * 2_600_000} for row in range(count)
    ]
    rows[-2]["who"] = None
    pq.write_table(pa.table(pa.Table.from_pylist(rows).to_pydict() | more), folder / name)
    return FileSource(str(folder / name))


def take(lake: Lake, source: FileSource, names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    return import_into_lake(source, EVENTS, names, SETTINGS, lake)


def rows_of(lake: Lake) -> list[Row]:
    found: list[Row] = snapshot(lake, EVENTS).read().sort_by([("offset", "ascending")]).to_pylist()
    return found


def test_the_rows_are_those_that_kafka_would_have_brought(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ratings(tmp_path, context=[None] * 9 + ['{"device": "tv"}'], campaign=["a"] * 10)
    report = import_into_lake(source, EVENTS, NAMES, SETTINGS, lake, refused_file=tmp_path / "refused.jsonl")
    counts = ("rows", "sent", "written", "refused", "duplicates", "commits", "lost_commits")
    assert [report[name] for name in counts] == [10, 9, 9, 1, 0, 3, 0]
    assert [json.loads(line)["row"] for line in (tmp_path / "refused.jsonl").read_text().splitlines()] == [9]
    assert report["reasons"] == {"missing": 1}

    sent = sent_by(monkeypatch, lambda: import_rows(source, EVENTS, NAMES, SETTINGS))
    records = [(0, place, 1_000_000_000_000_000, key, value) for place, (key, value) in enumerate(sent)]
    wanted = decode(EVENTS, pa.table(list(zip(*records, strict=True)), schema=RECORDS), SETTINGS.events).events
    place = {"topic", "partition", "offset", "record_time"}
    found = rows_of(lake)
    same = [{k: v for k, v in row.items() if k not in {*place, "arrival_time"}} for row in found]
    assert same == wanted.drop(list(place)).to_pylist()
    assert [(row["topic"], row["partition"], row["offset"]) for row in found] == [
        (IMPORTED, IMPORT_PARTITION, offset) for offset in range(9)
    ]
    table = lake.table(EVENTS)
    carried = [json.loads(one.summary.additional_properties["manta.offsets"]) for one in table.snapshots()]
    assert [one[EVENTS] for one in carried] == [{"id": "id", "next": {"0": 7, "1": 3}}] * 4
    assert [one.summary.additional_properties.get("added-data-files") for one in table.snapshots()][1:] == [
        "2",
        "2",
        "1",
    ]


def sent_by(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[tuple[bytes, bytes]]:
    """What an import through Kafka sends."""
    found: list[tuple[bytes, bytes]] = []

    class Topic:
        def __init__(self, *_: object, **__: object) -> None:
            return

        def send_blocking(self, _topic: str, messages: Iterator[tuple[bytes, bytes]]) -> None:
            found.extend(messages)

        def close(self) -> None:
            return

    monkeypatch.setattr(importing, "EventProducer", Topic)
    work()
    return found


class Killed(BaseException):
    """Stands for kill -9: nothing is tidied up."""


@pytest.mark.parametrize(
    ("point", "times", "left"), [("ingest:written", 1, 0), ("ingest:written", 2, 4), ("import:committed", 2, 8)]
)
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(
    point: str, times: int, left: int, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reached = ratings(tmp_path), 0

    def reach(name: str) -> None:
        nonlocal reached
        reached += name == point
        if name == point and reached == times:
            raise Killed

    for module in ("app.lake.commit", "app.lake.bulk"):
        monkeypatch.setattr(f"{module}.reach", reach)
    with pytest.raises(Killed):
        take(lake, source)
    assert len(rows_of(lake)) == left
    report = take(lake, source)
    assert (report["written"], report["duplicates"]) == (9 - left, left)
    assert take(lake, source)["written"] == 0, "sent twice counts once"
    found = rows_of(lake)
    assert sorted(row["item_id"] for row in found) == sorted(f"i{row}" for row in range(10) if row != 8)
    assert [row["offset"] for row in found] == list(range(9)), "no place is given twice"
    assert progress_of(lake.table(EVENTS)).topics == STOOD | {IMPORTED: TopicOffsets("", {IMPORT_PARTITION: 9})}


def test_beside_an_ingest_that_remembers_one_wins_each_commit_and_an_event_counts_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ratings(tmp_path, event_id=[f"e{row}" for row in range(10)])
    log = [message(offset, number) for offset, number in enumerate([0, 4, 9, 20], 7)]

    def read(_: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
        some = log[chunk[0].start - 7 : chunk[0].end - 7]
        decoded = decode(EVENTS, pa.table(list(zip(*some, strict=True)), schema=RECORDS), SETTINGS.events)
        yield ReadBlock(decoded, block_hashes(EVENTS, decoded.events))

    job = IngestJob(SETTINGS, lake, read)

    def ingest_to(end: int) -> None:
        held = {EVENTS: TopicBounds(EVENTS, "id", {0: 0, 1: 0}, {0: end, 1: 3})}
        monkeypatch.setattr(ingest, "bounds", lambda *_: held)
        job.take(EVENTS)

    def append_late(*words: Any, **more: Any) -> int:
        ingest_to(9)  # another is first: e4 by the first commit, nothing new by the others
        return append(*words, **more)

    ingest_to(8)  # e0; from now on it remembers
    monkeypatch.setattr(bulk, "append", append_late)
    report = take(lake, source)
    assert (report["written"], report["duplicates"], report["lost_commits"]) == (7, 2, 1)
    ingest_to(11)  # e9 is there by the import
    ids = [row["event_id"] for row in rows_of(lake)]
    assert sorted(ids) == sorted([*(f"e{row}" for row in range(10) if row != 8), "e20"])
    assert job.report.duplicates == 1


def message(offset: int, number: int) -> tuple[int, int, int, bytes, bytes]:
    event = {"event_id": f"e{number}", "user_id": str(number % 3), "item_id": "x", "event_type": "click"}
    return 0, offset, int(time.time() * 1000), b"k", json.dumps(event).encode()


def test_items_are_replaced_by_the_imported_version(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(bulk, "_take_what_came", lambda _settings, _lake, topic, _erased: taken.append(topic))
    table = pa.table({"id": [1, 2, 3], "title": ["A", "B", None], "year": [1990, None, 2000]})
    pq.write_table(table, tmp_path / "items.parquet")
    source = FileSource(str(tmp_path / "items.parquet"))
    report = import_into_lake(source, ITEMS, {"id": "item_id"}, SETTINGS, lake)
    assert (report["written"], report["duplicates"], taken) == (3, 0, [ITEMS])
    pq.write_table(pa.table({"id": [2], "title": ["C"]}), tmp_path / "items.parquet")
    import_into_lake(source, ITEMS, {"id": "item_id"}, SETTINGS, lake)
    found = {row["item_id"]: row for row in snapshot(lake, ITEMS).read().to_pylist()}
    assert {name: json.loads(row["columns"]) for name, row in found.items()} == {
        "1": {"title": "A", "year": 1990},
        "2": {"title": "C"},
        "3": {"year": 2000},
    }
    assert found["2"]["offset"] == 3
    assert all(row["available"] and row["topic"] == IMPORTED for row in found.values())
    vectors = pa.array([[0.1, 0.25], [1.0, math.nan], None, [0.5, 1, 2]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": [1, 2, 4, 5], "picture": vectors}), tmp_path / "items.parquet")
    report = import_into_lake(source, ITEMS, {"id": "item_id"}, SETTINGS, lake)
    assert (report["written"], report["refused"], report["reasons"]) == (3, 1, {"range": 1})  # NaN is no number
    stood = snapshot(lake, ITEMS).read().sort_by("item_id")
    assert [row for row in stood["columns"].to_pylist() if "picture" in row] == [
        '{"picture":[0.10000000149011612,0.25]}',
        '{"picture":[0.5,1.0,2.0]}',
    ]
    assert item_columns(stood["columns"].to_pylist()).column("picture").type == pa.list_(pa.float32())
    found = {row["item_id"]: row for row in stood.to_pylist()}
    nothing = {name: TopicBounds(name, "id", {0: 0}, {0: 0}) for name in TABLES}
    monkeypatch.setattr("app.lake.losses.bounds", lambda *_: nothing)
    monkeypatch.setattr("app.lake.losses.ensure_topics", lambda *_: None)
    assert make_good(lake, SETTINGS.kafka)["restored"] == {"items": 0, "users": 0}, "no broker has lost them"


def test_lake_rebuilt_state_and_training_have_one_order_of_imported_and_other_events(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 1_400_000_000
    rows = [("u", f"i{number}", at + number // 3) for number in (5, 0, 4, 3, 1, 2)]
    table = pa.table(dict(zip(("who", "what", "at"), map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "some.parquet")
    now = snapshot(lake, EVENTS)
    from_kafka = [
        {"event_id": f"k{number}", "user_id": "u", "item_id": f"k{number}", "event_type": "click", "topic": EVENTS}
        | {"event_time": (at + number) * 1_000_000, "record_time": at * 1_000_000, "partition": 0, "offset": number}
        for number in (0, 1)
    ]
    append(now.source, pa.Table.from_pylist(from_kafka, TABLES[EVENTS]), now.progress, max_open_partitions=2)
    names = {there: here for there, here in NAMES.items() if there != "stars"}
    assert take(lake, FileSource(str(tmp_path / "some.parquet")), names)["written"] == 6

    held = {name: TopicBounds(name, "id", {0: 0}, {0: 7 if name == EVENTS else 0}) for name in (EVENTS, ITEMS, USERS)}
    monkeypatch.setattr(rebuild, "bounds", lambda *_: held)  # Kafka holds nothing more
    report = rebuild.rebuild(SETTINGS, tmp_path, lake)
    assert (report.events, report.generation) == (8, 1)
    wanted = ["i0", "i1", "i2", "k0", "i5", "i4", "i3", "k1"]  # of one time: imported ones first, as their rows stood
    (record,) = stored(database(StatePaths.of(tmp_path).databases, 1)).values()
    assert [entry.item_id for entry in entries_of(record)] == wanted
    events = snapshot(lake, EVENTS).read()
    by_hand = sorted(events.to_pylist(), key=lambda row: (row["event_time"], row["partition"], row["offset"]))
    assert [row["item_id"] for row in by_hand] == wanted
    no_items = TABLES[ITEMS].empty_table()
    learned = training_set(counted(events, CLICKS), no_items, "now", weights=CLICKS, gap_s=1800.0)
    assert [learned.catalogue.item_ids[row] for row in learned.interactions.items] == wanted
