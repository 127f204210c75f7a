"""One suite for every state reader: memory, and a RocksDB secondary behind the writer's store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.memory import MemoryState
from app.state.position import Position
from app.state.reader import EMPTY_HISTORY, StateReader
from app.state.replica import StateReplica
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


@pytest.fixture(params=["memory", "rocksdb"])
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


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
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
