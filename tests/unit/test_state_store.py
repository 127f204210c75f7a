"""What the writer's store keeps, and what it forgets."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.state import layout
from app.state.batch import Batch, StateEvent
from app.state.shares import WHOLE, ShareDiffers, beside, shard
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


def test_a_crash_in_a_batch_finds_all_of_it_or_nothing(tmp_path: Path) -> None:
    """RocksDB writes a write batch whole or not at all: there must be one, with the offsets in it."""

    class Crashing:
        """A database whose process ends at its second write."""

        def __init__(self, db: object) -> None:
            self._db, self._left = db, 1

        def __getattr__(self, name: str) -> Any:
            return getattr(self._db, name)

        def write(self, batch: object) -> None:
            if not self._left:
                raise OSError("killed")
            self._left -= 1
            self._db.write(batch)  # type: ignore[attr-defined]

    store = StateStore(tmp_path / "db", Settings())
    batch = clicks(0, 5, 0)
    items, users = [("i", b'{"year":1}')], [("u", b'{"age":1}')]
    merge = StateEvent(0, 5, 0, None, "u", "s", None, "merge", 0, NAN)
    offsets = {("events", 0): 6, ("items", 0): 1, ("users", 0): 1}
    whole = Batch([*batch.events, merge], items, users, offsets, {"json": 1}, {"gap": 2})
    real = store._db
    store._db = Crashing(real)
    store.apply(whole)
    store._db = real
    store.close()
    store = StateStore(tmp_path / "db", Settings())
    assert store.offsets() == {"events": {0: 6}, "items": {0: 1}, "users": {0: 1}}
    assert (store.totals.skipped, store.totals.jumps, identities(store)) == ({"json": 1}, {"gap": 2}, 5)
    for family in (layout.HISTORIES, layout.LINKS, layout.ITEMS, layout.USERS):
        assert list(store._families[family].keys(from_key=layout.FIRST)), family
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


def test_a_longer_time_to_live_says_that_a_rebuild_is_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for days in (None, 30.0, 10.0, 10.0, 5.0):
        store = StateStore(tmp_path / "db", Settings.model_validate({"state": {"ttl_days": days}}))
        store.apply(Batch())
        store.close()
        assert not caplog.records
    for days in (7.0, None):
        store = StateStore(tmp_path / "db", Settings.model_validate({"state": {"ttl_days": days}}))
        store.apply(Batch())
        store.close()
        assert "state.ttl_days was 5 once" in caplog.text
        assert "`manta state rebuild`" in caplog.text
        caplog.clear()
    store.close()  # once more does no harm


def test_a_shard_is_written_while_its_partitions_are_those_that_the_shards_can_share(tmp_path: Path) -> None:
    path, share = tmp_path / "db", shard(0, 2)
    store = StateStore(path, Settings(), share=share)
    store.require_partitions(0)  # the topic is not there yet
    with pytest.raises(ShareDiffers, match=r"state.shards: found 2, wanted a divisor of the 3 .*`manta state rebuild`"):
        store.require_partitions(3)
    store.require_partitions(4)
    store.apply(clicks(0, 1, 0))
    store.close()
    store = StateStore(path, Settings(), share=share)
    store.require_partitions(4)
    with pytest.raises(ShareDiffers, match=r"found 8 partitions of events, wanted 4 .*`manta state rebuild`"):
        store.require_partitions(8)
    store.close()
    for other in (shard(1, 2), shard(0, 4), beside(2), WHOLE):
        with pytest.raises(ShareDiffers, match=f"found shard 0 of 2, wanted {re.escape(str(other))}"):
            StateStore(path, Settings(), share=other)
    whole = StateStore(tmp_path / "whole", Settings())
    whole.require_partitions(3)
    whole.require_partitions(4)
    whole.close()
