"""Rows of files, object stores and databases as messages: what is sent, what is refused, what is read again."""

import gzip
import json
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet
import pytest

from app.errors import MantaError, SettingsError
from app.events import import_csv, importing
from app.events.import_columns import columns_of, event_values
from app.events.import_sources import FileSource, LastValues, Row, Source, SqlSource
from app.events.importing import import_rows
from app.settings import KafkaSettings, Settings
from scripts.sources import source_of

SETTINGS = Settings(kafka=KafkaSettings(bootstrap_servers="nowhere:1"))
RATINGS = [
    {"userId": 1, "movieId": "007", "rating": 4.5, "timestamp": 1476640644},
    {"userId": 2, "movieId": "8", "rating": None, "timestamp": 1476640644},
]
NAMES = {"userId": "user_id", "movieId": "item_id", "rating": "value", "timestamp": "event_time"}


class Topic:
    """Takes what is sent instead of a broker."""

    sent: list[tuple[bytes, dict[str, Any]]]

    def __init__(self, *_: object, **__: object) -> None:
        return

    def send_blocking(self, _topic: str, messages: Iterator[tuple[bytes, bytes]]) -> int:
        Topic.sent = [(key, json.loads(value)) for key, value in messages]
        return len(Topic.sent)

    def close(self) -> None:
        return


@pytest.fixture(autouse=True)
def _topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "EventProducer", Topic)


def sent(source: Source, kind: str = "events", names: Mapping[str, str] = NAMES) -> list[tuple[bytes, dict[str, Any]]]:
    import_rows(source, kind, names, SETTINGS)
    return Topic.sent


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"ratings{suffix}"
    table = pa.Table.from_pylist(RATINGS)
    if suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif suffix.startswith(".csv"):
        pa.csv.write_csv(table, path)
        if suffix.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    else:
        text = "".join(json.dumps(row) + "\n" for row in RATINGS).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".jsonl", ".ndjson.gz"])
def test_the_same_rows_in_any_file_are_the_same_events(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix)
    found = sent(FileSource(str(path)))
    assert sent(FileSource(path.as_uri())) == found
    assert [key for key, _ in found] == [b"1", b"2"]
    first, second = ({k: v for k, v in body.items() if k != "event_id"} for _, body in found)
    time = {"event_time": "2016-10-16T17:57:24Z", "schema_version": 1}
    assert first == {"user_id": "1", "item_id": "007", "value": 4.5, "event_type": "rating", **time}
    assert second == {"user_id": "2", "item_id": "8", "event_type": "click", **time}
    assert len({body["event_id"] for _, body in found}) == 2


def test_a_folder_of_an_object_store_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "bucket" / "day").mkdir(parents=True)
    write(tmp_path / "bucket" / "day", ".parquet")
    write(tmp_path / "bucket", ".csv")
    (tmp_path / "bucket" / "_SUCCESS").touch()
    store = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())
    assert len(sent(FileSource("bucket", store))) == 4
    with pytest.raises(MantaError, match="import: nothing/here: found nothing there"):
        sent(FileSource("nothing/here", store))


CELLS: list[tuple[str, Any, Any]] = [
    ("user_id", 7, "7"),
    ("user_id", 7.0, "7"),
    ("session_id", 'quo"te \\ slash', 'quo"te \\ slash'),
    ("session_id", "line\nbreak\x01", "line\nbreak\x01"),
    ("event_time", 1476640644.5, "2016-10-16T17:57:24.500000Z"),
    ("event_time", 1476640644500, "2016-10-16T17:57:24.500000Z"),
    ("event_time", datetime(2016, 10, 16, 17, 57, 24, tzinfo=UTC), "2016-10-16T17:57:24Z"),
    ("event_time", datetime(1969, 12, 31, 23, 59, 59, 500000), "1969-12-31T23:59:59.500000Z"),
    ("event_time", "2016-10-16T17:57:24+02:00", "2016-10-16T17:57:24+02:00"),
    ("event_time", "2016-10-16 17:57:24.5", "2016-10-16T17:57:24.500000Z"),
    ("event_time", "2016-10-16", "2016-10-16T00:00:00Z"),
    ("event_time", "2016-13-16", "2016-13-16"),
    ("event_time", date(2016, 10, 16), "2016-10-16T00:00:00Z"),
    ("value", 3, 3),
    ("value", -2.5e-7, -2.5e-7),
    ("context", '{"device": "tv"}', {"device": "tv"}),
    ("context", {"device": "tv"}, {"device": "tv"}),
    ("tags", ["a", "b"], ["a", "b"]),
    ("on", True, True),
]


@pytest.mark.parametrize(("name", "cell", "wanted"), CELLS, ids=[f"{name} {cell!r}" for name, cell, _ in CELLS])
def test_columns_and_rows_write_a_cell_alike(name: str, cell: Any, wanted: Any) -> None:
    table = pa.table({"event_id": ["e", "e"], name: pa.array([cell, None])})
    full, empty = (json.loads(value) for value in event_values(table, 0).to_pylist())
    assert full[name] == wanted
    assert name not in empty
    rows = [{"event_id": "e", name: cell}, {"event_id": "e"}]
    assert [json.loads(value) for value in event_values(columns_of(rows), 0).to_pylist()] == [full, empty]
    mixed, _ = (json.loads(value) for value in event_values(columns_of([*rows[:1], {name: ["a"]}]), 0).to_pylist())
    assert mixed[name] == wanted


def test_an_id_made_of_a_row_is_the_same_wherever_the_row_stands_in_a_batch() -> None:
    table = pa.table({"user_id": ["a", "b\n"], "item_id": ["x", "y"]})
    both = event_values(table, 5).to_pylist()
    assert event_values(table.slice(1), 6).to_pylist() == both[1:]
    assert event_values(table, 6)[0] != both[0]
    assert event_values(table, None)[0] == event_values(table.slice(0, 1), None)[0]


def test_refused_rows_are_counted_named_and_written(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,event_time\n1,2,2020-01-01T00:00:00Z\n,3,\n4,5,yesterday\n")
    report = import_rows(FileSource(str(path)), "events", {}, SETTINGS, refused_file=tmp_path / "refused.jsonl")
    assert (report["rows"], report["sent"], report["refused"]) == (3, 1, 2)
    assert report["reasons"] == {"missing": 1, "range": 1}
    written = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [(one["row"], one["reason"]) for one in written] == [(2, "missing"), (3, "range")]
    assert report["first_refused"] == written


ODD = """user_id,item_id,value,event_time,page,note
u0,i,n/a,2020-01-01T00:00:00Z,1,
u1,i,4.50,1476640644,2,
u2,i
"u
3",i,3,-62135596800,03,
u4,i,,2020-01-01 10:00,x,7
u5,i,1,1e20,,
u6,i,1,2020-02-30,,"a,b"
u7,i,1,0,1,,,
"""


def test_an_odd_row_of_a_file_is_refused_alone_and_no_other_row_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    report = import_rows(FileSource(str(path)), "events", {}, SETTINGS)
    reasons = [(one["row"], one["reason"]) for one in report["first_refused"]]
    assert sorted(reasons) == [(1, "type"), (3, "columns"), (6, "range"), (7, "range"), (8, "columns")]
    assert (report["rows"], report["sent"]) == (8, 3)
    whole = {body["user_id"]: body for _, body in Topic.sent}
    assert {user: (body.get("value"), body["event_time"]) for user, body in whole.items()} == {
        "u1": (4.5, "2016-10-16T17:57:24Z"),
        "u\n3": (3, "0001-01-01T00:00:00Z"),
        "u4": (None, "2020-01-01T10:00:00Z"),
    }
    assert [whole[user].get("page") for user in ("u1", "u\n3", "u4")] == ["2", "03", "x"]  # 03 is no number
    with monkeypatch.context() as patch:
        patch.setattr(import_csv, "_BLOCK_BYTES", 64)  # a row or two a block
        in_blocks = import_rows(FileSource(str(path)), "events", {}, SETTINGS)
    assert in_blocks["first_refused"] == sorted(report["first_refused"], key=lambda one: one["row"])
    assert {body["user_id"] for _, body in Topic.sent} == whole.keys()
    path.write_text(ODD.replace("n/a", "2").replace("u2,i\n", "u2,i,,,,\n"))  # mended: the others stay the same
    assert import_rows(FileSource(str(path)), "events", {}, SETTINGS)["refused"] == 3
    mended = {body["user_id"]: body["event_id"] for _, body in Topic.sent}
    assert {user: mended[user] for user in whole} == {user: body["event_id"] for user, body in whole.items()}


def test_columns_of_items_are_what_their_first_rows_look_like(tmp_path: Path) -> None:
    rows = [f"{n},{1900 + n},{'true' if n % 2 else 'FALSE'},{n}0,Film {n}" for n in range(1, 20)]
    path = tmp_path / "items.csv"
    path.write_text("\n".join(["item_id,year,on,zip,title", *rows, "20,n/a,maybe,01234,1984"]))
    found = dict(sent(FileSource(str(path)), "items", {}))
    assert found[b"1"] == {"schema_version": 1, "year": 1901, "on": True, "zip": "10", "title": "Film 1"}
    assert found[b"20"] == {"schema_version": 1, "year": "n/a", "on": "maybe", "zip": "01234", "title": "1984"}


def test_a_line_that_is_no_object_is_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"user_id":"a","item_id":"i"}\nnot json\n\n[1]\n{"user_id":"b","item_id":"i","value":NaN}\n{}\n')
    report = import_rows(FileSource(str(path)), "events", {}, SETTINGS)
    refused = [(one["row"], one["reason"]) for one in report["first_refused"]]
    assert (report["rows"], report["sent"], refused) == (5, 1, [(2, "json"), (3, "json"), (4, "json"), (5, "missing")])
    path.write_text('{"item_id":"i"}\nnot json\n')
    report = import_rows(FileSource(str(path)), "items", {}, SETTINGS)
    assert (report["sent"], report["reasons"]) == (1, {"json": 1})


def test_items_are_taken_with_numbers_as_ids_and_nothing_where_a_file_has_nan(tmp_path: Path) -> None:
    table = pa.table({"movieId": [1, 2], "title": ["Heat", None], "year": [1995.0, float("nan")], "tags": [["a"], []]})
    pa.parquet.write_table(table, tmp_path / "items.parquet")
    found = sent(FileSource(str(tmp_path / "items.parquet")), "items", {"movieId": "item_id"})
    assert found == [
        (b"1", {"schema_version": 1, "title": "Heat", "year": 1995.0, "tags": ["a"]}),
        (b"2", {"schema_version": 1, "tags": []}),
    ]


def test_a_dry_run_reads_everything_and_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "EventProducer", None)
    report = import_rows(FileSource(str(write(tmp_path, ".csv"))), "events", NAMES, SETTINGS, dry_run=True)
    assert (report["rows"], report["sent"], report["dry_run"]) == (2, 2, True)


def database(path: Path, rows: list[Row]) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute("create table if not exists shop (id integer, who integer, what text, at text)")
        connection.executemany("insert into shop values (:id, :who, :what, :at)", rows)
    connection.close()
    return f"sqlite:///{path}"


def shop(number: int) -> Row:
    return {"id": number, "who": number % 2, "what": f"i{number}", "at": "2020-01-01T00:00:00Z"}


SHOP = {"who": "user_id", "what": "item_id", "at": "event_time"}


@pytest.mark.parametrize("words", [{"table": "shop"}, {"query": "select * from shop where who >= 0 and at > '19:';"}])
def test_a_database_is_read_from_where_the_last_import_ended(words: dict[str, str], tmp_path: Path) -> None:
    address = database(tmp_path / "shop.db", [shop(1), shop(2), shop(3)])
    last = LastValues(tmp_path / "home" / "imports.json")

    def read() -> list[str]:
        source = source_of(address, words.get("table", ""), words.get("query", ""), "id", last)
        found = [body["item_id"] for _, body in sent(source, names=SHOP)]
        assert isinstance(source, SqlSource)
        last.keep(source)
        return found

    assert read() == ["i1", "i2", "i3"]
    assert read() == []
    database(tmp_path / "shop.db", [shop(5), shop(4)])
    assert read() == ["i4", "i5"]


def test_rows_of_a_database_have_ids_by_their_content_alone(tmp_path: Path) -> None:
    one = sent(SqlSource(database(tmp_path / "a.db", [shop(1), shop(2)]), table="shop"), names=SHOP)
    other = sent(SqlSource(database(tmp_path / "b.db", [shop(2), shop(1)]), table="shop"), names=SHOP)
    assert [body["event_id"] for _, body in one] == [body["event_id"] for _, body in reversed(other)]


@pytest.mark.parametrize("last", [7, 2.5, "text", datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)])
def test_a_kept_value_comes_back_as_it_was(last: Any, tmp_path: Path) -> None:
    source = SqlSource("sqlite://", table="t", since="id", last=last)
    LastValues(tmp_path / "imports.json").keep(source)
    assert LastValues(tmp_path / "imports.json").of(source) == last
    assert LastValues(tmp_path / "imports.json").of(SqlSource("sqlite://", table="u", since="id")) is None


def test_a_password_is_neither_shown_nor_kept(tmp_path: Path) -> None:
    source = SqlSource("sqlite://u:s3cret@host/x.db", table="t", since="id", last=1)
    LastValues(tmp_path / "imports.json").keep(source)
    assert "s3cret" not in (tmp_path / "imports.json").read_text() + source.shown


def test_what_is_wrong_with_a_database_is_one_line(tmp_path: Path) -> None:
    address = database(tmp_path / "shop.db", [shop(1)])
    with pytest.raises(MantaError, match="no such table: absent"):
        sent(SqlSource(address, table="absent"))
    with pytest.raises(SettingsError, match="--since-column: found 'when', wanted one of id, who, what, at"):
        sent(SqlSource(address, query="select * from shop", since="when"))
    with pytest.raises(SettingsError, match="PATH: found 'the address', wanted a database's address"):
        sent(SqlSource("no address", table="t"))


def test_an_address_without_a_table_and_a_column_that_nobody_has_are_said_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    Topic.sent = []
    with pytest.raises(MantaError, match=r"found 'sqlite:///shop.db', .*; for a database name --table or --query too"):
        sent(FileSource("sqlite:///shop.db"))
    wrong = {"userId": "user_id", "timestmp": "event_time"}
    for suffix in (".csv", ".parquet"):
        with pytest.raises(
            SettingsError, match="--column: found 'timestmp', wanted one of userId, movieId, rating, ti"
        ):
            sent(FileSource(str(write(tmp_path, suffix))), names=wrong)
    with pytest.raises(SettingsError, match="--column: found 'userId', wanted one of id, who, what, at"):
        sent(SqlSource(database(tmp_path / "shop.db", [shop(1)]), table="shop"), names=wrong)
    assert Topic.sent == []
    # Of JSON lines each row has columns of its own
    assert len(sent(FileSource(str(write(tmp_path, ".jsonl"))), names=NAMES | {"page": "surface"})) == 2
