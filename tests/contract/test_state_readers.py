"""One suite for every state reader: memory, a RocksDB secondary behind the writer's store, shards here and away."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.errors import StateUnavailable
from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.layout import StatePaths, database
from app.state.memory import MemoryState
from app.state.owners import Looked
from app.state.position import Position
from app.state.reader import EMPTY_HISTORY, Kind, StateReader, UserHistory
from app.state.replica import StateReplica
from app.state.sharded import ShardedState
from app.state.shares import beside, shard_of, shares
from app.state.store import StateStore

NAN = float("nan")
Apply = Callable[[Batch], object]
DAY = 86_400_000


def event(
    offset: int,
    item: str | None = "i",
    *,
    user: str | None = "u",
    session: str | None = None,
    kind: str = "click",
    time: int | None = None,
    event_id: str | None = None,
    arrival: int = 0,
    partition: int = 0,
) -> StateEvent:
    moment = offset if time is None else time
    return StateEvent(partition, offset, arrival, event_id, user, session, item, kind, moment * 1000, NAN)


def events(*found: StateEvent) -> Batch:
    offsets: dict[tuple[str, int], int] = {}
    for one in found:
        offsets["events", one.partition] = one.offset + 1
    return Batch(events=found, offsets=offsets)


@pytest.fixture(params=["memory", "rocksdb", "shards", "owners"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[StateReader, Apply]]:
    with opened(request.param, {"max_history": 5}, tmp_path) as found:
        yield found


@contextmanager
def opened(kind: str, section: dict[str, object], tmp_path: Path) -> Iterator[tuple[StateReader, Apply]]:
    """A reader, and what gives it messages; `section`: settings of the state."""
    settings = Settings.model_validate({"state": section})
    if kind == "memory":
        memory = MemoryState(settings)
        yield memory, memory.apply
        return
    if kind in ("shards", "owners"):
        with sharded(settings, tmp_path, range(3) if kind == "shards" else [1]) as found:
            yield found
        return
    store = StateStore(tmp_path / "db" / "00000000", settings)
    position = Position.create(tmp_path / "position")
    replica = StateReplica(tmp_path / "db", tmp_path / "replica", tmp_path / "position")

    def apply(batch: Batch) -> None:
        position.publish(store.apply(batch))
        assert replica.behind()
        replica.catch_up()
        assert not replica.behind()

    yield replica, apply
    replica.close()
    store.close()


class Stores:
    """Owners of shards, in this process; those that are down say so, those that hang nothing."""

    def __init__(self, stores: Mapping[int, StateStore]) -> None:
        self._stores, self.down, self.asked = stores, set[int](), list[tuple[int, int]]()
        self.hung = set[int]()

    async def look(self, shard: int, keys: Sequence[bytes], /) -> Looked:
        self.asked.append((shard, len(keys)))
        if shard in self.down:
            raise StateUnavailable(f"shard {shard}: down")
        if shard in self.hung:
            await asyncio.Event().wait()
        store = self._stores[shard]
        published = store.published()
        return Looked(store.look(keys), published.watermark, published.since, published.offsets.get("events", {}))


class Asking(ShardedState):
    """Asks owners where the others read at once."""

    def histories(self, keys: Sequence[tuple[Kind, str]]) -> list[UserHistory]:
        async def ask() -> list[UserHistory]:
            for number in {0, 1, 2} - self.here:  # as a gateway does now and then, for their watermarks
                await self.hear(number, 5.0)
            return (await self.gather(keys, 5.0)).histories(keys)

        return asyncio.run(ask())

    def merged_into(self, session_id: str) -> str | None:
        return asyncio.run(self.merged_anywhere(session_id, 5.0))

    def applied(self, topic: str, partition: int) -> int:
        number = self.shard_of_partition(partition)
        if topic != "events" or number in self.here:
            return super().applied(topic, partition)
        return asyncio.run(self.hear(number, 5.0))[partition]

    def as_of(self) -> int:
        self.histories([])
        return super().as_of()


@contextmanager
def sharded(
    settings: Settings, home: Path, here: Collection[int], *, synchronous: bool = True
) -> Iterator[tuple[ShardedState, Apply]]:
    """Three shards, each with what is its own; some on this node, the others with their owners."""
    section = settings.state.model_copy(update={"placement": "sharded", "shards": 3})
    writers = {}
    for share in shares(section):
        paths = StatePaths.of(home).shard(share.shard)
        store = StateStore(database(paths.databases, 0), settings, share=share)
        writers[share] = (store, Position.create(paths.position))
    owners = Stores({share.shard: store for share, (store, _) in writers.items()})
    reader = (ShardedState if len(here) == 3 or not synchronous else Asking)(home, "reader", section, owners)
    reader.keep(here)

    def apply(batch: Batch) -> None:
        for share, (store, position) in writers.items():
            items, users = ((), ()) if share.is_shard else (batch.items, batch.users)
            events = share.taken(batch.events) if share.is_shard else []
            offsets = {place: offset for place, offset in batch.offsets.items() if share.reads(*place)}
            position.publish(store.apply(Batch(events, items, users, offsets)))
        assert reader.behind()
        reader.catch_up()
        assert not reader.behind()
        assert reader.failing() == {}

    yield reader, apply
    reader.close()
    for store, _ in writers.values():
        store.close()


def test_an_owner_that_is_down_fails_those_alone_who_need_it_and_is_asked_once(tmp_path: Path) -> None:
    settings = Settings()
    names = {name: shard_of(name, 3) for name in "abcdefghij"}
    by_shard = {number: [name for name in names if names[name] == number] for number in range(3)}
    (far, also), near, third = by_shard[0][:2], by_shard[1][0], by_shard[2][0]
    with sharded(settings, tmp_path, [1]) as (reader, apply):
        owners = reader.owners
        assert isinstance(owners, Stores)
        apply(
            events(
                event(0, "x", user=far),
                event(1, "y", user=near, partition=1),
                event(2, "z", user=None, session=third, time=1),
            )
        )
        apply(events(event(3, None, user=near, session=third, kind="merge", time=5)))
        keys: list[tuple[Kind, str]] = [("user", far), ("user", near), ("user", also), ("session", third)]

        async def look() -> list[tuple[str, ...] | str]:
            found = await reader.gather(keys, 5.0)
            shown: list[tuple[str, ...] | str] = []
            for key in keys:
                try:
                    shown.append(found.histories([key])[0].item_ids)
                except StateUnavailable as error:
                    shown.append(str(error))
            return shown

        assert asyncio.run(look()) == [("x",), ("z", "y"), (), ("z",)]
        assert sorted(owners.asked) == [(0, 2), (2, 1)]
        owners.down = {2}
        assert asyncio.run(look()) == [("x",), "shard 2: down", (), "shard 2: down"]
        owners.down = {0}
        assert asyncio.run(look()) == ["shard 0: down", ("z", "y"), "shard 0: down", ("z",)]


def items_of(reader: StateReader, kind: str, name: str) -> tuple[str, ...]:
    return reader.histories([(kind, name)])[0].item_ids  # type: ignore[list-item]


def test_histories_are_newest_last_and_bounded(state: tuple[StateReader, Apply]) -> None:
    reader, apply = state
    apply(events(*(event(n, f"i{n}") for n in range(4))))
    apply(
        events(
            event(4, "late", time=1),
            event(5, "new"),
            event(6, None, kind="search"),
            event(7, "shown", kind="impression"),
        )
    )
    history, nobody = reader.histories([("user", "u"), ("user", "nobody")])
    assert history.item_ids == ("i1", "late", "i2", "i3", "new")
    assert history.times.tolist() == [1, 1, 2, 3, 5]
    assert nobody is EMPTY_HISTORY
    assert reader.applied("events", 0) == 8
    assert reader.as_of() == 7


def test_an_event_counts_once_within_the_horizon_and_with_both_ids_for_the_user_alone(
    state: tuple[StateReader, Apply],
) -> None:
    reader, apply = state
    apply(events(event(0, "a", event_id="e"), event(1, "b", event_id="e", arrival=7 * DAY - 1)))
    apply(events(event(2, "c", event_id="e", arrival=7 * DAY - 1), event(3, "d", event_id="e", arrival=7 * DAY)))
    assert items_of(reader, "user", "u") == ("a", "d")
    apply(events(event(4, "x", session="s", event_id="e2"), event(5, "y", user=None, session="s", event_id="e2")))
    assert items_of(reader, "user", "u") == ("a", "d", "x")
    assert items_of(reader, "session", "s") == ("y",)


@pytest.mark.parametrize("merge_first", [True, False])
def test_a_login_folds_the_session_up_to_its_time(state: tuple[StateReader, Apply], merge_first: bool) -> None:
    reader, apply = state
    clicks = events(
        event(0, "s1", user=None, session="s", partition=1), event(9, "s9", user=None, session="s", partition=1)
    )
    both = [
        event(5, None, session="s", kind="merge", time=6),
        event(0, None, session="s", kind="merge", time=6, partition=2),
    ]
    logins = events(*both)
    for batch in (logins, clicks) if merge_first else (clicks, logins):
        apply(batch)
    apply(events(event(6, "u7", time=7)))
    assert items_of(reader, "user", "u") == ("s1", "u7")
    assert items_of(reader, "session", "s") == ("s1", "s9")
    assert reader.merged_into("s") == "u"
    assert reader.merged_into("other") is None
    before = reader.histories([("user", "u")])[0].version
    apply(events(event(11, "s2", user=None, session="s", partition=1, time=2)))
    assert items_of(reader, "user", "u") == ("s1", "s2", "u7")
    assert reader.histories([("user", "u")])[0].version != before


def test_a_session_merges_once_and_the_earliest_merge_holds(state: tuple[StateReader, Apply]) -> None:
    reader, apply = state
    apply(events(event(0, "x", user=None, session="s", partition=1), event(1, "own", user="late", time=1)))
    apply(events(event(2, None, user="late", session="s", kind="merge", time=9)))
    assert items_of(reader, "user", "late") == ("x", "own")
    apply(events(event(3, None, user="early", session="s", kind="merge", time=8)))
    assert items_of(reader, "user", "early") == ("x",)
    assert items_of(reader, "user", "late") == ("own",)
    assert reader.merged_into("s") == "early"


def test_items_have_one_last_change_each_and_sequences_rise(state: tuple[StateReader, Apply]) -> None:
    reader, apply = state
    apply(Batch(items=[("a", b'{"year":1}'), ("b", b"{}"), ("a", b'{"year":2}')], offsets={("items", 0): 3}))
    first = reader.item_changes(0)
    assert [(change.item_id, change.available, change.columns) for change in first] == [
        ("a", True, {"year": 2}),
        ("b", True, {}),
    ] or [change.item_id for change in first] == ["b", "a"]
    last = first[-1].sequence
    assert reader.item_changes(last) == []
    apply(Batch(items=[("a", None)], offsets={("items", 0): 4}))
    withdrawn = reader.item_changes(last)
    assert [(change.item_id, change.available, change.columns) for change in withdrawn] == [("a", False, {"year": 2})]
    assert reader.item("a") == withdrawn[0]
    assert reader.item("nothing") is None
    assert [change.item_id for change in reader.item_changes(0)] == ["b", "a"]
    apply(Batch(items=[("a", None), ("never-seen", None)]))
    assert [change.item_id for change in reader.item_changes(withdrawn[0].sequence)] == ["never-seen"]


def test_user_columns_are_put_and_forgotten(state: tuple[StateReader, Apply]) -> None:
    reader, apply = state
    apply(Batch(users=[("u", b'{"age":3}'), ("v", b"{}")]))
    assert reader.user_columns(["u", "v", "w"]) == [{"age": 3}, {}, None]
    apply(Batch(users=[("u", None)]))
    assert reader.user_columns(["u"]) == [None]


def test_of_two_merges_at_one_time_the_lesser_user_holds(state: tuple[StateReader, Apply]) -> None:
    """Not the copy in the lower partition: shards see different copies."""
    reader, apply = state
    apply(events(event(0, "x", user=None, session="s", partition=1)))
    apply(events(event(0, None, user="b", session="s", kind="merge", time=5)))
    apply(events(event(0, None, user="a", session="s", kind="merge", time=5, partition=2)))
    assert items_of(reader, "user", "a") == ("x",)
    assert items_of(reader, "user", "b") == ()
    assert reader.merged_into("s") == "a"


@pytest.mark.parametrize("kind", ["memory", "rocksdb", "shards", "owners"])
def test_an_entry_expires_when_the_watermark_leaves_it_behind(kind: str, tmp_path: Path) -> None:
    with opened(kind, {"ttl_days": 2.0}, tmp_path) as (reader, apply):
        apply(events(event(0, "old", time=1), event(1, "new", time=DAY), event(2, "merged", user=None, session="s")))
        apply(events(event(3, None, session="s", kind="merge", time=5)))
        before = reader.histories([("user", "u")])[0]
        assert before.item_ids == ("old", "merged", "new")
        apply(events(event(4, "other", user="v", time=2 * DAY + 1)))  # exactly as old as may be: still there
        assert reader.histories([("user", "u")])[0].version == before.version
        apply(events(event(5, "other", user="v", time=2 * DAY + 2)))
        after = reader.histories([("user", "u")])[0]
        assert after.item_ids == ("merged", "new")
        assert after.version != before.version  # whatever was kept for the old version is asked for no more
        apply(events(event(6, "late", time=DAY // 2), event(7, "too late", time=0)))
        assert items_of(reader, "user", "u") == ("merged", "late", "new")
        assert reader.as_of() == 2 * DAY + 2
        apply(events(event(8, "other", user="v", time=9 * DAY)))
        assert reader.histories([("user", "u")])[0] is EMPTY_HISTORY
        assert items_of(reader, "session", "s") == ()


def test_a_reader_takes_no_database_of_another_share(tmp_path: Path) -> None:
    paths = StatePaths.of(tmp_path)
    store, position = StateStore(database(paths.databases, 0), Settings()), Position.create(paths.position)
    position.publish(store.apply(events(event(0, "i"))))
    replica = StateReplica.of_home(tmp_path, "reader", beside(2))
    line = r"found the whole state \(placement node\), wanted the items and users beside 2 shards: run `manta state"
    with pytest.raises(StateUnavailable, match=line):
        replica.catch_up()
    with pytest.raises(StateUnavailable, match="no catch-up has succeeded"):
        replica.user_columns(["u"])
    replica.close()
    position.close()
    store.close()
