"""Histories under placement `sharded` equal those under `node`, byte for byte, whatever the shards and their order."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.erasure.erased import Boundary, Entry, Erased, TopicEnd
from app.events import partitioner
from app.events.schema import EVENTS, MERGE
from app.settings import Settings
from app.state.batch import Batch, StateEvent, session_key, user_key
from app.state.candidates import candidates_key
from app.state.erasures import known_together
from app.state.joining import Join
from app.state.memory import accepted, fold_everything
from app.state.messages import without_erased
from app.state.reader import Kind, UserHistory
from app.state.shares import Share, shard, shard_of
from app.state.store import StateStore
from tests.property.test_state import DAY, SETTINGS, log, shown, wishes
from tests.property.test_state_erasing import REQUESTED_MS, SALT, _merged_elsewhere

NAMES = ("a", "b", "é", "nobody")
# Sessions that merge into several users, at one time even, are what shards could see differently
logins = wishes.map(
    lambda wish: {**wish, "kind": MERGE, "user": wish["user"] or "a", "session": wish["session"] or "b"}
)
KEYS: list[tuple[Kind, str]] = [(kind, name) for kind in ("user", "session") for name in NAMES]


def joined(stores: list[StateStore], since: int | None) -> dict[bytes, tuple[object, ...]]:
    """Key → the history as it is shown."""
    join = Join(KEYS, len(stores), SETTINGS.state.max_history)
    steps = join.steps()
    found: dict[bytes, tuple[object, ...]] = {}
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send({number: stores[number].look(keys) for number, keys in wanted.items()})
    except StopIteration:
        pass
    for (kind, name), history in zip(KEYS, join.histories(since), strict=True):
        assert isinstance(history, UserHistory)
        found[user_key(name) if kind == "user" else session_key(name)] = (
            history.item_ids,
            history.event_types,
            history.times.tolist(),
            history.values.tobytes(),
            history.version,
        )
    return found


def folded(events: list[StateEvent], since: int | None) -> dict[bytes, tuple[object, ...]]:
    """The same, by the definition."""
    whole = fold_everything(events, SETTINGS.state.max_history, DAY)
    keys = [user_key(name) if kind == "user" else session_key(name) for kind, name in KEYS]
    return {key: shown(whole.get(key), since) for key in keys}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists(wishes | logins, min_size=12, max_size=30),
    shards=st.integers(1, 4),
    times=st.integers(1, 2),
    cuts=st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=6),
    ttl_days=st.sampled_from([None, 0.5, 2.0, 5.0]),
)
def test_histories_of_shards_are_those_of_a_node(
    drawn: list[dict[str, object]],
    shards: int,
    times: int,
    cuts: list[tuple[int, bool]],
    ttl_days: float | None,
) -> None:
    """Each shard reads its own partitions alone; at the end, and with all expired ones dropped, as the pure fold."""
    options = SETTINGS.model_copy(update={"state": SETTINGS.state.model_copy(update={"ttl_days": ttl_days})})
    partitions = shards * times
    events = log(drawn, DAY * 1000 if ttl_days else 1, lambda key: partitioner.partition_of(key.encode(), partitions))
    moments = [event.time // 1000 for event in accepted(events, DAY)]
    since = None if ttl_days is None else int(max([0, *moments]) - ttl_days * DAY)
    folder = Path(tempfile.mkdtemp(prefix="m-shards-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    stores: list[StateStore] = []
    try:
        stores += [written(folder / str(n), shard(n, shards), events, cuts, options) for n in range(shards)]
        assert joined(stores, since) == folded(events, since)
        for store in stores:
            store._next_history = b""
            store.drop_expired()
        assert joined(stores, since) == folded(events, since)
    finally:
        for store in stores:
            store.close()
        shutil.rmtree(folder)


def written(
    path: Path, share: Share, events: list[StateEvent], cuts: list[tuple[int, bool]], options: Settings
) -> StateStore:
    """A shard that has read its partitions in batches, with restarts and a re-read."""
    store = StateStore(path, options, share=share)
    mine, done = [event for event in events if share.reads("events", event.partition)], 0
    for size, restarts in [*cuts, (len(mine) + 1, False)]:
        chunk, done = mine[max(0, done - 1) : done + size], done + size
        offsets = {("events", event.partition): event.offset + 1 for event in chunk}
        store.apply(Batch(events=chunk, offsets=offsets))
        if restarts:
            store.close()
            store = StateStore(path, options, share=share)
    return store


@given(drawn=st.lists(wishes | logins, min_size=5, max_size=12), shards=st.integers(1, 4), wrong=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_shard_takes_nothing_that_another_holds(drawn: list[dict[str, Any]], shards: int, wrong: int) -> None:
    """Foreign producers may place messages elsewhere; what is not the shard's is counted, one by one or in columns."""
    events = log(drawn * 5, 1, lambda _: wrong)
    for number in range(shards):
        share = shard(number, shards)
        assert share.taken(events) == [one for event in events for one in share.taken([event])]
    for event in events:
        takers = [number for number in range(shards) if shard(number, shards).taken([event])]
        owners = {event.user_id, event.session_id} if event.event_type == MERGE else {event.user_id or event.session_id}
        assert takers == sorted({shard_of(owner, shards) for owner in owners if owner})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists((wishes | logins).map(lambda wish: {**wish, "event_id": None}), min_size=8, max_size=30),
    shards=st.integers(1, 3),
    times=st.integers(1, 2),
    before=st.floats(0, 1),
    missed=st.booleans(),
)
def test_shards_out_of_which_somebody_was_erased_are_as_if_nothing_had_come_before(
    drawn: list[dict[str, object]], shards: int, times: int, before: float, missed: bool
) -> None:
    """Each shard erases for itself, knowing from all of them together whose sessions are whose."""
    events = log(drawn, 1, lambda key: partitioner.partition_of(key.encode(), shards * times))
    events = [event for event in events if not _merged_elsewhere(event, drawn)]
    ends: dict[int, int] = {}
    for event in events[: round(before * len(events))]:
        ends[event.partition] = event.offset + 1
    boundary = Boundary(REQUESTED_MS, {EVENTS: TopicEnd("t", ends)})
    folder = Path(tempfile.mkdtemp(prefix="m-shards-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    stores = [StateStore(folder / str(n), SETTINGS, share=shard(n, shards)) for n in range(shards)]
    old = [event for event in events if event.offset < ends.get(event.partition, 0)]
    new = [event for event in events if event.offset >= ends.get(event.partition, 0)]
    try:
        for store in stores:
            store.topic_ids[EVENTS] = "t"
            store.apply(Batch(events=[event for event in old if store.share.reads(EVENTS, event.partition)]))
        sessions = known_together([store.known("a") for store in stores]).sessions
        hashes = frozenset({SALT.key("user", "a"), *(SALT.key("session", name) for name in sessions)})
        erased = Erased(SALT, [Entry(hashes, boundary)])
        for store in stores:
            if missed:
                store.erase_known(erased)
            else:
                store.erase({user_key("a"): [boundary]} | {session_key(name): [boundary] for name in sessions})
            names = {user_key("a"), candidates_key("a"), *(session_key(name) for name in sessions)}
            left = {key for family in ("histories", "links") for key, _ in store._families[family].items()}
            assert not names & left
            store.apply(Batch(events=[event for event in new if store.share.reads(EVENTS, event.partition)]))
        assert joined(stores, None) == folded(without_erased(events, erased.on(EVENTS, "t")), None)
    finally:
        for store in stores:
            store.close()
        shutil.rmtree(folder)
