"""The ledger of erasures: what it remembers, and what no file of it holds any more."""

import secrets
import threading
from pathlib import Path

import pytest

from app.erasure.erased import NOBODY, TopicEnd, load_erased
from app.erasure.ledger import ErasureLedger
from app.erasure.places import cleared
from app.errors import NotFound
from app.settings import Settings

ENDS = {"events": TopicEnd("t-1", {0: 10, 1: 20})}


@pytest.fixture
def ledger(tmp_path: Path) -> ErasureLedger:
    return ErasureLedger(Settings(), tmp_path)


def test_one_runs_per_user_and_what_was_is_kept(ledger: ErasureLedger) -> None:
    first = ledger.begin("ann", ENDS, 1000)
    assert ledger.begin("ann", {"events": TopicEnd("t-1", {0: 99})}, 2000) == first
    assert (first.state, first.user_id, first.ends, first.subject.requested_ms) == ("running", "ann", ENDS, 1000)
    other = ledger.begin("bob", ENDS, 1000)
    assert [one.id for one in ledger.unfinished()] == [first.id, other.id]

    failed = ledger.note_places(first.id, [cleared("state")], "failed", "lake: found no disk, wanted some")
    assert (failed.state, failed.user_id) == ("failed", "ann"), "it is tried again, so its ids are needed"
    assert ledger.begin("ann", ENDS, 3000).id == first.id
    done = ledger.finish(first.id, [cleared("state"), cleared("lake")])
    assert (done.state, done.user_id, done.sessions, done.reason) == ("done", None, (), None)
    assert [report["place"] for report in done.as_json()["places"]] == ["state", "lake"]
    assert [one.id for one in ledger.unfinished()] == [other.id]

    again = ledger.begin("ann", {"events": TopicEnd("t-1", {0: 30})}, 4000)
    assert again.id != first.id
    latest = ledger.latest("ann")
    assert latest is not None
    assert latest.id == again.id
    assert ledger.latest("nobody") is None
    with pytest.raises(NotFound):
        ledger.erasure("e-none")


def test_of_two_that_begin_at_once_there_is_one(ledger: ErasureLedger) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(ledger.begin("ann", ENDS, 1000).id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_no_file_holds_the_ids_once_it_is_done(ledger: ErasureLedger, tmp_path: Path) -> None:
    user, session = secrets.token_hex(16), secrets.token_hex(16)
    others = [ledger.begin(f"other-{place}", ENDS, 1000).id for place in range(20)]
    erasure = ledger.begin(user, ENDS, 1000).id
    assert ledger.settle(erasure, [session]).sessions == (session,)
    before = _files_with(tmp_path, user, session)
    assert before, "while it runs it can be resumed"
    reader = ErasureLedger(Settings(), tmp_path)  # a second process that looks on
    reader.erasure(erasure)
    ledger.finish(erasure, [cleared("state")])
    assert _files_with(tmp_path, user, session) == []
    assert len(ledger.unfinished()) == len(others)
    erased = reader.erased()
    for kind, name in (("user", user), ("session", session)):
        assert [one.requested_ms for one in erased.boundaries(kind, name)] == [1000]  # type: ignore[arg-type]
    assert erased.boundaries("session", user) == ()
    assert ledger.salted(user) == reader.salted(user) != user


def test_without_a_database_nobody_was_erased(tmp_path: Path) -> None:
    assert load_erased(Settings(), tmp_path) is NOBODY
    ledger = ErasureLedger(Settings(), tmp_path)
    version = ledger.erased().version
    erasure = ledger.begin("ann", ENDS, 1000)
    assert load_erased(Settings(), tmp_path).version == version, "nothing is left out before the sessions are known"
    ledger.settle(erasure.id, [])
    settled = load_erased(Settings(), tmp_path)
    ledger.settle(erasure.id, ["s"])
    assert version < settled.version < load_erased(Settings(), tmp_path).version
    ledger.note_end(erasure.id, "users", TopicEnd("t-2", {0: 5}))
    assert ledger.erasure(erasure.id).ends == {**ENDS, "users": TopicEnd("t-2", {0: 5})}


def _files_with(folder: Path, *texts: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(text.encode() in path.read_bytes() for text in texts)]
