"""An import brings nobody back who was erased; what happened after the erasure is a new history."""

import json
from pathlib import Path

import pytest

from app.erasure.erased import Boundary, Entry, Erased, Salt
from app.events import importing
from app.events.import_sources import FileSource
from app.events.importing import import_rows
from app.events.schema import EVENTS
from app.lake.bulk import import_into_lake
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.settings import Settings
from tests.unit.test_importing import Topic

SETTINGS = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})  # nobody is asked
AT = 1_700_000_000
SALT = Salt(b"salt")
ERASED = Erased(SALT, [Entry(frozenset({SALT.key("user", "ann"), SALT.key("session", "s")}), Boundary(AT * 1000, {}))])


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    rows = [
        {"user_id": "ann", "item_id": "old", "event_time": AT - 1},
        {"user_id": "ann", "item_id": "new", "event_time": AT + 1},
        {"user_id": "ann", "item_id": "untimed"},
        {"session_id": "s", "item_id": "theirs", "event_time": AT - 1},
        {"user_id": "bob", "session_id": "s", "item_id": "bobs", "event_time": AT - 1},
        {"user_id": "bob", "item_id": "untimed"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileSource(str(tmp_path / "rows.jsonl"))


def test_what_happened_before_is_refused(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "EventProducer", Topic)
    report = import_rows(source, EVENTS, {}, SETTINGS, erased=lambda: ERASED)
    assert [(key, value["item_id"]) for key, value in Topic.sent] == [
        (b"ann", "new"),
        (b"bob", "bobs"),
        (b"bob", "untimed"),
    ]
    assert (report["sent"], report["reasons"]) == (3, {"erased": 3})
    assert [row["row"] for row in report["first_refused"]] == [1, 3, 4]
    assert "ann" not in json.dumps(report)


def test_columns_of_an_erased_user_are_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "EventProducer", Topic)
    (tmp_path / "users.csv").write_text("user_id,age\nann,41\nbob,42\n")
    report = import_rows(FileSource(str(tmp_path / "users.csv")), "users", {}, SETTINGS, erased=lambda: ERASED)
    assert [key for key, _ in Topic.sent] == [b"bob"]
    assert report["reasons"] == {"erased": 1}


def test_an_erasure_beside_an_import_into_the_lake(source: FileSource, tmp_path: Path) -> None:
    """Read before anybody was erased, committed after: what was read is looked at again."""
    lake, asked = open_lake(SETTINGS, tmp_path / "home"), iter([Erased(SALT, ()), ERASED])
    report = import_into_lake(source, EVENTS, {}, SETTINGS, lake, erased=lambda: next(asked))
    assert (report["sent"], report["written"]) == (6, 3)
    rows = snapshot(lake, EVENTS).read(["user_id", "item_id"]).to_pylist()
    assert sorted((row["user_id"], row["item_id"]) for row in rows) == [
        ("ann", "new"),
        ("bob", "bobs"),
        ("bob", "untimed"),
    ]
