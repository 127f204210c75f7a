"""The writer's incremental state equals the pure fold over everything, byte for byte, whatever happens in between."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events.schema import MERGE
from app.settings import Settings
from app.state import layout, upkeep
from app.state.batch import Batch, StateEvent
from app.state.history import entries_of, read
from app.state.memory import accepted, fold_everything
from app.state.store import StateStore

DAY = 86_400_000
SETTINGS = Settings.model_validate({"state": {"max_history": 4}, "events": {"dedup_days": 1}})
PARTITIONS = 3

ids = st.sampled_from(["a", "b", "é"])
wishes = st.fixed_dictionaries(
    {
        "user": st.none() | ids,
        "session": st.none() | ids,
        "item": st.sampled_from(["x", "y", "z"]),
        "kind": st.sampled_from(["click", "click", "rating", "remove", "impression", "search", MERGE]),
        "time": st.integers(-2, 12),
        "event_id": st.none() | st.sampled_from(["1", "2", "3", "4"]),
        "hours": st.integers(0, 20),
        "value": st.sampled_from([float("nan"), 1.5]),
    }
)


def placed(key: str) -> int:
    return sum(key.encode()) % PARTITIONS


def log(
    drawn: list[dict[str, object]], time_us: int = 1, partition_of: Callable[[str], int] = placed
) -> list[StateEvent]:
    """Wishes as they would lie in the topic: keyed, offsets rising, merges under both keys; times times `time_us`."""
    ends: Counter[int] = Counter()
    clock = 0
    events: list[StateEvent] = []

    def put(key: object, wish: dict[str, object]) -> None:
        partition = partition_of(str(key))
        item = None if wish["kind"] in (MERGE, "search") else wish["item"]
        time = int(str(wish["time"])) * time_us
        fields = (wish["event_id"], wish["user"], wish["session"], item, wish["kind"], time, wish["value"])
        events.append(StateEvent(partition, ends[partition], clock, *fields))  # type: ignore[arg-type]
        ends[partition] += 1

    for wish in drawn:
        clock += int(str(wish["hours"])) * 3_600_000
        keys = [wish["user"], wish["session"]]
        if wish["kind"] == MERGE:
            if None not in keys:
                put(keys[0], wish)
                put(keys[1], wish)
        elif any(keys):
            put(keys[0] or keys[1], wish)
    return events


def stored(path: Path) -> dict[bytes, bytes]:
    db = layout.open_primary(path)
    histories = db.get_column_family(layout.HISTORIES)
    found = dict(histories.items(from_key=layout.FIRST))
    histories.close()
    db.close()
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists(wishes, max_size=30),
    cuts=st.lists(st.tuples(st.integers(1, 7), st.booleans(), st.booleans()), max_size=30),
    order=st.permutations(range(PARTITIONS)),
)
def test_incremental_equals_the_pure_fold(
    drawn: list[dict[str, object]], cuts: list[tuple[int, bool, bool]], order: list[int]
) -> None:
    events = log(drawn)
    # Partitions arrive in any order against each other, as a consumer may hand them out.
    arriving = sorted(events, key=lambda event: order.index(event.partition)) if len(cuts) % 2 else list(events)
    folder = Path(tempfile.mkdtemp(prefix="m-state-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        store, done = StateStore(folder, SETTINGS), 0
        for size, restarts, repeats in [*cuts, (len(arriving) + 1, False, False)]:
            chunk = arriving[max(0, done - 2) if repeats else done : done + size]  # a re-read overlaps
            offsets = dict(store.offsets().get("events", {}))
            for event in chunk:
                offsets[event.partition] = max(offsets.get(event.partition, 0), event.offset + 1)
            store.apply(Batch(events=chunk, offsets={("events", p): offset for p, offset in offsets.items()}))
            done = min(done + size, len(arriving))
            if restarts:
                store.close()
                store = StateStore(folder, SETTINGS)
        store.close()
        assert stored(folder) == fold_everything(events, SETTINGS.state.max_history, DAY)
    finally:
        shutil.rmtree(folder)


def shown(record: bytes | None, since: int | None) -> tuple[object, ...]:
    """What a reader makes of a record."""
    found = read(record, since)
    return found.item_ids, found.event_types, found.times.tolist(), found.values.tobytes(), found.version


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists(wishes, max_size=30),
    cuts=st.lists(st.tuples(st.integers(1, 7), st.booleans(), st.integers(0, 3)), max_size=30),
    ttl_days=st.sampled_from([0.5, 2.0, 5.0, 30.0]),
    draw=st.randoms(use_true_random=False),
)
def test_expired_entries_are_shown_by_nobody_whenever_they_are_dropped(
    drawn: list[dict[str, object]], cuts: list[tuple[int, bool, int]], ttl_days: float, draw: Random
) -> None:
    """After every batch each history is the pure fold of the events so far, as of the watermark, versions included.

    So it is too where the accepted events come in any order, as a rebuild finds them in the lake.
    """
    options = SETTINGS.model_copy(update={"state": SETTINGS.state.model_copy(update={"ttl_days": ttl_days})})
    events = log(drawn, DAY * 1000)
    folder = Path(tempfile.mkdtemp(prefix="m-state-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        store, done = StateStore(folder, options), 0
        for size, restarts, sweeps in [*cuts, (len(events) + 1, False, 0)]:
            done = min(done + size, len(events))
            since = store.apply(Batch(events=events[:done], offsets=ends_of(events[:done]))).since
            with patch.object(upkeep, "_HISTORIES_LOOKED_AT", 2):
                for _ in range(sweeps):
                    store.drop_expired()
            if restarts:
                store.close()
                store = StateStore(folder, options)
            held, whole = store._families[layout.HISTORIES], fold_everything(events[:done], 4, DAY)
            times = [event.time // 1000 for event in accepted(events[:done], DAY)]
            assert since == max([0, *times]) - ttl_days * DAY
            assert {key: shown(held.get(key), since) for key in whole} == {
                key: shown(record, since) for key, record in whole.items()
            }
        store._next_history, ended = b"", False
        while not ended:
            store.drop_expired()
            ended = not store._next_history
        for family in (layout.HISTORIES, layout.OWN):
            kept = [
                entry.time
                for record in store._families[family].values(from_key=layout.FIRST)
                for entry in entries_of(record)
            ]
            assert all(time // 1000 >= (since or 0) for time in kept)
        assert all(entries_of(record) for record in store._families[layout.HISTORIES].values(from_key=layout.FIRST))
        rows = accepted(events, DAY)
        draw.shuffle(rows)
        rebuilt = StateStore(folder / "rebuilt", options)
        for start in range(0, len(rows), 5):
            since = rebuilt.apply(Batch(events=rows[start : start + 5])).since
        held, anew = (one._families[layout.HISTORIES] for one in (store, rebuilt))
        assert {key: shown(anew.get(key), since) for key in whole} == {
            key: shown(held.get(key), since) for key in whole
        }
        rebuilt.close()
        store.close()
    finally:
        shutil.rmtree(folder)


def ends_of(events: list[StateEvent]) -> dict[tuple[str, int], int]:
    """Next offset of each partition behind the events."""
    return {("events", event.partition): event.offset + 1 for event in events}
