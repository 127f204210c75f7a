"""An erasure in a home where no writer runs: what the state, or else the lake, knows of the user, and what is left."""

import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

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
from app.settings import Settings, StateSettings
from app.state import states_here
from app.state.batch import Batch, StateEvent, user_key
from app.state.checkpoint import write_checkpoint, write_checkpoints
from app.state.layout import StatePaths, choose_generation, database
from app.state.position import Position, gone_shards
from app.state.sharded import ShardedState, open_reader
from app.state.shares import shard, shard_of, shares
from app.state.states_here import StatesHere
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
    monkeypatch.setattr(states_here, "_STALLED_S", 0.1)
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


def test_a_shard_that_has_gone_to_another_node_is_neither_shown_nor_copied_but_cleared(
    tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left on this disk is of the day when it went."""
    section = {"placement": "sharded", "shards": 2, "checkpoints": str(tmp_path / "store")}
    settings = SETTINGS.model_copy(update={"state": StateSettings.model_validate(section)})
    users = {shard_of(f"u{number}", 2): f"u{number}" for number in range(9)}
    clicks = [StateEvent(0, 0, 0, None, user, None, "i", "click", 0, NAN) for user in users.values()]
    now = time.time_ns()
    for share in shares(settings.state):
        paths = StatePaths.of(tmp_path).shard(share.shard)
        choose_generation(paths.databases, 0)
        store = StateStore(database(paths.databases, 0), settings, share=share)
        published = store.apply(Batch(events=share.taken(clicks) if share.is_shard else []))
        store.close()
        position = Position.create(paths.position)
        with monkeypatch.context() as clock:
            clock.setattr("app.state.position.time.time_ns", lambda: now - 61 * 10**9 * (share.shard == 1))  # noqa: B023
            position.publish(published)
        position.close()
    assert gone_shards(tmp_path) == {1}
    states = StatesHere(settings, tmp_path)
    assert states.shown(users[0])[0].item_ids == ("i",)
    with pytest.raises(StateUnavailable, match="shard 1"):
        states.shown(users[1])
    with pytest.raises(StateUnavailable, match=r"there is no state.*manta ingest"):  # it knows not of all merges
        states.known(subject)
    reader = cast(ShardedState, open_reader(tmp_path, "test", settings.state))
    assert reader.here == {0}
    reader.close()
    assert sorted(Path(report.place).parent.name for report in write_checkpoints(settings, tmp_path)) == [
        "shard-0-of-2",
        "store",
    ]
    with pytest.raises(StateUnavailable, match="shard 1 of 2: found it on another node"):
        write_checkpoint(settings, tmp_path, shard(1, 2))
    states.erase(replace(subject, user_id=users[1]))
    rows = StateStore(database(StatePaths.of(tmp_path).shard(1).databases, 0), settings, share=shard(1, 2))
    assert rows.look([user_key(users[1])])[0].record is None
    rows.close()
