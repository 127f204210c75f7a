"""Erased ids are in no file of the state's database, and a database that has missed an erasure makes up for it."""

import secrets
from pathlib import Path
from typing import Any

import pytest

from app.erasure.erased import Boundary, Entry, Erased, Salt, TopicEnd
from app.errors import StateUnavailable
from app.events.schema import EVENTS, MERGE, USERS
from app.settings import Settings
from app.state import layout
from app.state.batch import Batch, StateEvent, session_key, user_key
from app.state.history import entries_of
from app.state.position import Position
from app.state.replica import StateReplica
from app.state.room import is_held_by_another
from app.state.store import StateStore

NAN = float("nan")
USER, SESSION = secrets.token_hex(16), secrets.token_hex(16)
BOUNDARY = Boundary(1 << 40, {EVENTS: TopicEnd("t", {0: 1000}), USERS: TopicEnd("u", {0: 5})})
WHO = {user_key(USER): [BOUNDARY], session_key(SESSION): [BOUNDARY]}


def event(offset: int, user: str | None, session: str | None = None, kind: str = "click") -> StateEvent:
    item = None if kind == MERGE else "i"
    return StateEvent(0, offset, offset, str(offset), user, session, item, kind, offset, NAN)


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    """Has a user with a merged session and columns among others, some of it in files, some of it in the log."""
    found = StateStore(tmp_path / "db", Settings())
    found.topic_ids.update({EVENTS: "t", USERS: "u"})
    others = [event(100 + n, secrets.token_hex(16)) for n in range(500)]
    mine = [event(0, USER), event(1, None, SESSION), event(2, USER, SESSION, MERGE)]
    found.apply(Batch(events=[*mine, *others], users=[(USER, b'{"age":41}'), ("other", b"{}")]))
    found.flush()
    found.apply(Batch(events=[event(600, USER), event(601, None, SESSION)], offsets={(EVENTS, 0): 602, (USERS, 0): 3}))
    return found


def holding(folder: Path) -> set[str]:
    """Kinds of files that hold a piece of an id: of compressed ones a piece of eight stays readable (LZ4 literals)."""
    pieces = [name[start : start + 8].encode() for name in (USER, SESSION) for start in (0, 8, 16, 24)]
    coded = [name.encode().hex().encode() for name in (USER, SESSION)]  # as RocksDB's own log writes keys
    found = set()
    for file in folder.rglob("*"):
        held = file.read_bytes() if file.is_file() else b""
        if any(piece in held for piece in pieces) or any(code in held.lower() for code in coded):
            found.add(file.suffix or file.name.split("-")[0])
    return found


def test_no_file_holds_the_ids_while_it_is_open_nor_afterwards(store: StateStore, tmp_path: Path) -> None:
    store.flush()
    store.apply(Batch(events=[event(602, USER)]))
    assert holding(tmp_path) >= {".sst", ".log", "MANIFEST"}, "the search finds what is there"
    assert store.known(USER) == ((SESSION,), True)
    moves = store.published().moves
    published = store.erase(WHO)
    assert holding(tmp_path) == set()
    assert published.moves > moves, "readers look again"
    assert store.known(USER) == ((), False)
    store.apply(Batch(events=[event(1000, "x")]))
    store.close()
    assert holding(tmp_path) == set()


def test_who_waits_for_the_database_does_not_get_it_while_it_is_opened_anew(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_primary = layout.open_primary
    waited: list[Path] = []

    def with_another(path: Path) -> Any:
        if not waited:
            waited.append(path)
            with pytest.raises(StateUnavailable) as refused:  # RocksDB itself would let it in now
                StateStore(path, Settings())
            assert is_held_by_another(refused.value)
        return open_primary(path)

    monkeypatch.setattr(layout, "open_primary", with_another)
    store.erase(WHO)
    assert waited
    assert store.known(USER) == ((), False)
    store.close()
    StateStore(store.path, Settings()).close()


def test_what_comes_behind_stays_and_counts(store: StateStore) -> None:
    new = [event(1000, USER), event(1001, None, SESSION)]
    store.apply(Batch(events=new, offsets={(EVENTS, 0): 1002}))
    store.erase(WHO)
    again = StateEvent(0, 1002, 0, "600", USER, None, "i", "click", 5, NAN)  # an event id of before
    store.apply(Batch(events=[again]))
    assert store.totals.duplicates == 0
    store.close()
    db = layout.open_primary(store.path)
    histories, users = db.get_column_family(layout.HISTORIES), db.get_column_family(layout.USERS)
    assert sorted(entry.offset for entry in entries_of(histories.get(user_key(USER)))) == [1000, 1002]
    assert [entry.offset for entry in entries_of(histories.get(session_key(SESSION)))] == [1001]
    assert users.get(USER.encode()) is None
    assert users.get(b"other") == b"{}"


def test_columns_that_came_behind_the_withdrawal_stay(store: StateStore) -> None:
    store.apply(Batch(users=[(USER, None), (USER, b'{"age":42}')], offsets={(USERS, 0): 7}))
    store.erase(WHO)
    assert store._families[layout.USERS].get(USER.encode()) == b'{"age":42}'
    store.close()


def test_a_database_that_has_missed_an_erasure_finds_out_whom_it_holds(store: StateStore, tmp_path: Path) -> None:
    salt = Salt(b"salt")
    keys = frozenset({salt.key("user", USER), salt.key("session", SESSION), salt.key("user", "elsewhere")})
    erased = Erased(salt, [Entry(keys, BOUNDARY)])
    assert store.erase_known(Erased(salt, ())) is None
    assert store.erase_known(erased) is not None
    assert holding(tmp_path) == set()
    assert store.erase_known(erased) is None
    store.close()
    store = StateStore(store.path, Settings())
    assert store.erase_known(erased) is None, "it knows that it has done this one"
    store.close()


def test_killed_before_the_files_are_clear_it_is_made_up_for(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "_compact", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.erase(WHO)
    store.close()
    assert holding(tmp_path), "the records are gone, their old versions are not"
    store = StateStore(store.path, Settings())
    store.erase_known(Erased(Salt(b""), ()))
    assert holding(tmp_path) == set()
    store.close()


def test_a_reader_that_is_open_follows(store: StateStore, tmp_path: Path) -> None:
    databases = tmp_path / "dbs"
    store.close()
    databases.mkdir()
    store.path.rename(layout.database(databases, 0))
    layout.choose_generation(databases, 0)
    store = StateStore(layout.database(databases, 0), Settings())
    position = Position.create(tmp_path / "position")
    position.publish(store.outrun(0))
    replica = StateReplica(databases, tmp_path / "own", tmp_path / "position")
    replica.catch_up()
    position.publish(store.apply(Batch(events=[event(603, USER)], users=[(USER, b'{"age":43}')])))
    replica.catch_up()  # from the log: the reader keeps it in its own memory
    assert len(replica.histories([("user", USER)])[0].item_ids) == 4
    assert replica.user_columns([USER]) == [{"age": 43}]
    published = store.erase(WHO)
    position.open_anew()
    position.publish(published)
    assert replica.behind()
    replica.catch_up()
    assert replica.histories([("user", USER), ("session", SESSION)])[0].version == 0
    assert replica.user_columns([USER]) == [None]
    store.apply(Batch(events=[event(1000, USER)]))
    position.publish(store.published())
    replica.catch_up()
    assert len(replica.histories([("user", USER)])[0].item_ids) == 1
    assert holding(tmp_path) == {".log"}, "the new history is all there is"
    replica.close()
    store.close()
    position.close()
