"""Erasure from logs and other files: overwritten in text that others go on writing, looked for in everything else."""

from pathlib import Path

import pytest

from app.erasure import loose_files
from app.erasure.loose_files import LooseFilesPlace
from app.erasure.places import Subject
from app.errors import MantaError

USER = "0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f"


def clear(home: Path, user: str = USER, session: Path | None = None) -> str:
    (report,) = LooseFilesPlace(home, session).clear(Subject("e", user, ("s-ö1",), 0, {}))
    return report.detail


def test_text_keeps_its_length_while_another_appends(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "gateway.log"
    log.parent.mkdir()
    with log.open("ab", buffering=0) as writer:
        writer.write(f"GET /v1/users/{USER}/history 200\nuser u{USER}: gone\n".encode())
        size = log.stat().st_size
        assert clear(tmp_path) == "1 looked through, 1 changed or removed"
        writer.write(b"next line\n")
    text = log.read_text()
    assert USER not in text
    assert text == f"GET /v1/users/{'*' * 32}/history 200\nuser u{'*' * 32}: gone\nnext line\n"
    assert size == len(text) - len("next line\n")
    assert clear(tmp_path) == "1 looked through, 0 changed or removed"


def test_pieces_of_a_large_file_are_looked_through_where_they_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loose_files, "_PIECE", 1000)
    monkeypatch.setattr(loose_files, "_OVERLAP", 100)
    log = tmp_path / "a.log"
    for before in (*range(960, 1010), 3990):
        log.write_text("x" * before + USER + "y" * 3000 + USER)
        clear(tmp_path)
        assert log.read_text() == "x" * before + "*" * 32 + "y" * 3000 + "*" * 32
    log.write_text("/users/42" * 300 + "/users/42")
    clear(tmp_path, "42")
    assert log.read_text() == "/users/**" * 301
    log.write_text("x" * 991 + "/users/423" + "x" * 500)  # the first piece ends behind the 2
    clear(tmp_path, "42")
    assert log.read_text() == "x" * 991 + "/users/423" + "x" * 500


def test_a_short_id_is_looked_for_in_logs_where_ids_stand_and_harms_nothing_else(tmp_path: Path) -> None:
    log, run = tmp_path / "gateway.log", tmp_path / "run.json"
    log.write_text(
        'took 42 ms: 42, k=42, {"user_id":"42","n":42,"m":421} GET /v1/users/42?k=1 /v1/users/421 user_id=42\n'
    )
    run.write_text(before := '{"port":42,"surface":"42"}')
    clear(tmp_path, "42")
    assert log.read_text() == (
        'took 42 ms: 42, k=42, {"user_id":"**","n":42,"m":421} GET /v1/users/**?k=1 /v1/users/421 user_id=**\n'
    )
    assert run.read_text() == before
    log.write_text("\"s-\\u00f61\" /users/s-%C3%B61/ 's-ö1' s-ö1")
    clear(tmp_path, USER)
    assert log.read_text() == "\"*********\" /users/*********/ '*****' s-ö1"


def test_what_other_places_clear_is_theirs_and_the_session_is_looked_through(tmp_path: Path) -> None:
    home, session = tmp_path / "home", tmp_path / "session"
    for file in (home / "lake" / "a.json", home / "registry.db-wal", session / "logs" / "worker.out.1"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(USER)
    (home / "link.log").symlink_to(home / "lake" / "a.json")
    assert clear(home, session=session) == "1 looked through, 1 changed or removed"
    assert (home / "lake" / "a.json").read_text() == USER
    assert USER not in (session / "logs" / "worker.out.1").read_text()


def test_tunes_leftovers_go_and_spilled_rows_are_waited_for(tmp_path: Path) -> None:
    tune = tmp_path / "sweeps" / "s1" / "tune" / "trial" / "state.pkl"
    tune.parent.mkdir(parents=True)
    tune.write_bytes(b"\x80" + USER.encode())
    clear(tmp_path)
    assert [path.name for path in (tmp_path / "sweeps" / "s1").iterdir()] == []
    spilled = tmp_path / "session" / "ray_spilled_objects" / "abc"
    spilled.parent.mkdir(parents=True)
    spilled.write_bytes(USER.encode())
    with pytest.raises(MantaError, match="a job that runs") as raised:
        clear(tmp_path)
    spilled.rename(tmp_path / f"{USER}.bin")
    with pytest.raises(MantaError, match="wanted him in no file that is no text") as raised:
        clear(tmp_path)
    assert USER not in str(raised.value)
