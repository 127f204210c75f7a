"""An erasure in a home where no writer runs: what the state, or else the lake, knows of the user, and what is left."""

import secrets
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from app.erasure.erased import TopicEnd
from app.erasure.ledger import ErasureLedger
from app.erasure.places import Subject
from app.errors import StateUnavailable
from app.events.columns import EVENT_COLUMNS
from app.events.schema import EVENTS, MERGE
from app.lake.commit import Progress, TopicOffsets, append
from app.lake.tables import open_lake
from app.settings import Settings
from app.state import erasures
from app.state.batch import Batch, StateEvent
from app.state.erasures import StatesHere
from app.state.layout import StatePaths, choose_generation, database
from app.state.store import StateStore
from tests.search.files import files_with

SETTINGS = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})  # nobody is asked
NAN = float("nan")


@pytest.fixture
def subject() -> Subject:
    ends = {EVENTS: TopicEnd("t", {0: 3})}
    return Subject("e-1", secrets.token_hex(16), (), 1 << 40, ends)


def merge(offset: int, time: int, user: str, session: str) -> dict[str, object]:
    empty = dict.fromkeys(EVENT_COLUMNS.names)
    named = {"event_id": f"m{offset}", "user_id": user, "session_id": session, "event_type": MERGE, "topic": EVENTS}
    return {**empty, **named, "event_time": time, "record_time": time, "partition": 0, "offset": offset}


def test_without_a_state_the_lake_knows_the_sessions(tmp_path: Path, subject: Subject) -> None:
    states = StatesHere(SETTINGS, tmp_path)
    with pytest.raises(StateUnavailable, match=r"up to offset 0, wanted 3.*manta ingest"):
        states.known(subject)
    assert states.known(replace(subject, ends={})).sessions == ()
    rows = [
        merge(0, 10, subject.user_id, "his"),
        merge(1, 10, subject.user_id, "another's"),
        merge(2, 5, "other", "another's"),  # the first by time holds
        merge(3, 20, "other", "his"),
    ]
    lake = open_lake(SETTINGS, tmp_path)
    for some, upto in ((rows[:2], 2), (rows[2:], 4)):
        moved = Progress({EVENTS: TopicOffsets("t", {0: upto})})
        append(lake.table(EVENTS), pa.Table.from_pylist(some, EVENT_COLUMNS), moved, max_open_partitions=9)
        if upto < 3:
            with pytest.raises(StateUnavailable, match="up to offset 2, wanted 3"):
                states.known(subject)
    assert states.known(subject).sessions == ("his",)
    (report,) = states.erase(subject)
    assert report.detail == "there is none"


def test_a_state_that_nobody_writes(tmp_path: Path, subject: Subject) -> None:
    user, databases = subject.user_id, StatePaths.of(tmp_path).databases
    for generation in (0, 1, 2):  # before, in use, and half of one that a killed rebuild has left
        store = StateStore(database(databases, generation), SETTINGS, generation=generation)
        store.topic_ids[EVENTS] = "t"
        events = [
            StateEvent(0, 0, 0, "0", user, None, "i", "click", 0, NAN),
            StateEvent(0, 1, 0, "1", user, "s", None, MERGE, 9, NAN),
        ]
        store.apply(Batch(events=events, users=[(user, b'{"age":41}')], offsets={(EVENTS, 0): 3}))
        store.close()
    choose_generation(databases, 1)
    states = StatesHere(SETTINGS, tmp_path)
    history, columns = states.shown(user)
    assert (history.item_ids, columns) == (("i",), {"age": 41})
    assert states.known(subject) == (("s",), True)
    assert {path.relative_to(tmp_path).parts[2] for path in files_with(tmp_path, user)} == {
        "00000000",
        "00000001",
        "00000002",
    }

    writer = StateStore(database(databases, 1), SETTINGS, generation=1)
    with pytest.raises(StateUnavailable):
        states.erase(subject)
    writer.close()
    rebuilding = StateStore(database(databases, 2), SETTINGS, generation=2)
    with pytest.raises(StateUnavailable, match="rebuild"):
        states.erase(subject)
    rebuilding.close()
    states.erase(subject)
    assert files_with(tmp_path, user, user[:16]) == []
    history, columns = states.shown(user)
    assert (history.version, columns) == (0, None)


def test_what_the_ledger_knows_and_the_state_does_not_is_made_up_for(
    tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasures, "_STALLED_S", 0.1)
    databases = StatePaths.of(tmp_path).databases
    store = StateStore(database(databases, 0), SETTINGS)
    store.topic_ids[EVENTS] = "t"
    store.apply(Batch(events=[StateEvent(0, 0, 0, "0", "missed", None, "i", "click", 0, NAN)]))
    store.close()
    choose_generation(databases, 0)
    ledger = ErasureLedger(SETTINGS, tmp_path)
    ledger.settle(ledger.begin("missed", subject.ends, subject.requested_ms).id, [])
    states = StatesHere(SETTINGS, tmp_path)
    assert states.shown("missed")[0].version
    with pytest.raises(StateUnavailable):  # it cannot be read on to the request without a broker
        states.known(subject)
    assert states.shown("missed")[0].version == 0
