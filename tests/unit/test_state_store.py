"""What the writer's store keeps, and what it forgets."""

from pathlib import Path

from app.settings import Settings
from app.state import layout
from app.state.batch import Batch, StateEvent
from app.state.store import StateStore

DAY = 86_400_000
NAN = float("nan")


def clicks(first: int, count: int, arrival: int) -> Batch:
    numbers = range(first, first + count)
    events = [StateEvent(0, n, arrival, str(n), "u", None, str(n % 7), "click", arrival * 1000, NAN) for n in numbers]
    return Batch(events=events, offsets={("events", 0): first + count})


def identities(store: StateStore) -> int:
    return len(list(store._families[layout.SEEN].items()))


def test_identities_are_forgotten_after_twice_the_horizon(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db", Settings())
    store.apply(clicks(0, 500, 0))
    store.apply(clicks(500, 300, 10 * DAY))
    assert sum(store.forget_identities(13 * DAY) for _ in range(10)) == 0
    assert sum(store.forget_identities(15 * DAY) for _ in range(10)) == 500
    assert identities(store) == 300
    store.apply(clicks(500, 300, 10 * DAY))  # below the offsets: applied already
    assert (store.totals.events, store.totals.duplicates) == (800, 0)
    again = [StateEvent(0, 800 + n, 11 * DAY, str(500 + n), "u", None, "x", "click", 0, NAN) for n in range(300)]
    store.apply(Batch(events=again, offsets={("events", 0): 1100}))
    assert (store.totals.events, store.totals.duplicates) == (800, 300)
    store.close()


def test_times_beyond_now_do_not_move_the_watermark(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db", Settings())
    assert store.apply(clicks(0, 1, 5 * DAY), now_ms=5 * DAY).watermark == 5 * DAY
    assert store.apply(clicks(1, 1, 6 * DAY), now_ms=5 * DAY).watermark == 5 * DAY
    store.close()


def test_what_was_counted_is_kept_with_the_database(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db", Settings())
    store.apply(Batch(skipped={"json": 2}, jumps={"gap": 5}))
    store.apply(Batch(skipped={"json": 1, "type": 1}, offsets={("users", 3): 9}))
    store.close()
    store = StateStore(tmp_path / "db", Settings())
    assert store.totals.skipped == {"json": 3, "type": 1}
    assert store.totals.jumps == {"gap": 5}
    assert store.offsets() == {"users": {3: 9}}
    store.close()
