"""The writers of state and figures on a disk that is nearly full, or full: they stop, say so, and go on again."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import orjson
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME

from app.events.schema import EVENTS
from app.settings import Settings
from app.state import feed, room
from app.state.feed import Read
from app.state.layout import StatePaths
from app.state.replica import StateReplica
from app.state.room import Room, Shortage, used_bytes
from app.state.writer import StateWriterLoop
from app.stats import writer as stats_writer
from app.stats.writer import StatsWriterLoop
from deployments.status import disk, lag

pytestmark = pytest.mark.faults
MB = 1_000_000


class Click:
    """A message as confluent-kafka hands it over: 900 bytes of an event."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def topic(self) -> str:
        return EVENTS

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_CREATE_TIME, 1_700_000_000_000 + self._offset

    def key(self) -> bytes:
        return b"u"

    def value(self) -> bytes:
        item = f"{self._offset:08d}" + os.urandom(60).hex()
        return orjson.dumps({"user_id": f"u{self._offset % 5000}", "item_id": item, "event_type": "click"})


class Feed:
    """`StateFeed` over a log that a test lets grow."""

    end = 0
    topic_ids: dict[str, str] = {}  # noqa: RUF012 - as the feed's
    partitions: dict[str, int] = {EVENTS: 1}  # noqa: RUF012 - as the feed's
    connected, error = True, None

    def __init__(self, _: object, offsets: dict[str, dict[int, int]], *__: object, **___: object) -> None:
        self._next = offsets.get(EVENTS, {}).get(0, 0)

    def poll(self, _: float, limit: int) -> Read:
        last = min(self.end, self._next + limit)
        if last == self._next:
            time.sleep(0.005)
            return Read()
        some = [Click(offset) for offset in range(self._next, last)]
        self._next = last
        return Read(some, {(EVENTS, 0): last})

    def behind(self) -> dict[tuple[str, int], int]:
        return {(EVENTS, 0): self.end - self._next}

    def lag(self) -> dict[str, int]:
        return {EVENTS: self.end - self._next}

    def reached_ms(self, _: str) -> int | None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def log() -> Iterator[type[Feed]]:
    Feed.end = 0
    with patch.object(feed, "StateFeed", Feed), patch.object(stats_writer, "StateFeed", Feed):
        yield Feed


def until(ask: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


class running:  # noqa: N801 - reads as a phrase
    """Writers in threads for a while."""

    def __init__(self, *loops: StateWriterLoop | StatsWriterLoop) -> None:
        self._loops, self.failed = loops, list[BaseException]()
        self._threads = [threading.Thread(target=self._run, args=(loop,)) for loop in loops]

    def _run(self, loop: StateWriterLoop | StatsWriterLoop) -> None:
        try:
            loop.run()
        except BaseException as error:
            self.failed.append(error)
            raise

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        for loop in self._loops:
            loop.stop()
        for thread in self._threads:
            thread.join()
        assert not self.failed


def caught_up(replica: StateReplica, offset: int) -> bool:
    if replica.behind():
        replica.catch_up()
    return replica.applied(EVENTS, 0) == offset


def test_below_the_bound_the_writers_stop_and_go_on_by_themselves(log: type[Feed], tmp_path: Path) -> None:
    settings = Settings.model_validate({"state": {"min_free_bytes": 50 * MB, "max_history": 10}})
    free = [900 * MB]
    replica = StateReplica.of_home(tmp_path, "test")
    state, figures = StateWriterLoop(settings, tmp_path), StatsWriterLoop(settings, tmp_path)
    with patch.object(room, "free_bytes", lambda _: free[0]), running(state, figures):
        log.end = 6000
        until(lambda: StatePaths.of(tmp_path).position.exists() and state.status()["offsets"])
        until(lambda: caught_up(replica, 6000))
        until(lambda: figures.status()["offsets"].get(EVENTS) == {0: 6000})
        free[0] = 40 * MB
        until(lambda: state.status()["state"] == figures.status()["state"] == "stopped")
        log.end = 7000
        line = "found 40,000,000 bytes free, wanted 50,000,000 (state.min_free_bytes)"
        assert line in state.status()["error"]
        assert line in str(replica.shortage())
        assert line in disk(tmp_path)["stopped"]
        assert disk(tmp_path, up=False)["stopped"] is None  # nobody is there who could go on
        until(lambda: lag(tmp_path)["state_messages"] is None)
        free[0] = 51 * MB  # hardly more: it would stop again at once
        time.sleep(0.6)
        assert state.status()["state"] == "stopped"
        assert replica.applied(EVENTS, 0) == 6000
        assert len(replica.histories([("user", "u1")])[0].item_ids) == 2  # reading goes on
        StateReplica.of_home(tmp_path, "another").catch_up()
        free[0] = 900 * MB
        until(lambda: caught_up(replica, 7000))
        until(lambda: figures.status()["offsets"].get(EVENTS) == {0: 7000})
        assert replica.shortage() is None
        assert state.status()["events"] == 7000
        assert disk(tmp_path)["stopped"] is None
    replica.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path):
        pytest.skip("file systems cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def mount(*words: str | Path) -> int:
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode


def test_rocksdb_finding_no_space_stops_the_writer_and_room_lets_it_go_on(log: type[Feed], small_disk: Path) -> None:
    """In the middle of a write; every event is there once all the same."""
    settings = Settings.model_validate({"state": {"min_free_bytes": 0, "max_history": 41}})
    loop, replica = StateWriterLoop(settings, small_disk), StateReplica.of_home(small_disk, "test")
    with running(loop):
        until(lambda: loop.status()["state"] == "reading")
        while loop.status()["state"] != "stopped":
            if loop.status()["offsets"].get(EVENTS, {}).get(0, 0) == log.end:
                log.end += 2000
            time.sleep(0.01)
            assert log.end < 200_000, "16 MB should not hold all that"
        replica.catch_up()
        assert replica.shortage() is not None
        applied = replica.applied(EVENTS, 0)
        assert 0 < applied < log.end
        assert len(replica.histories([("user", "u7")])[0].item_ids) == len(range(7, applied, 5000))
        assert mount("-o", "remount,size=400m", small_disk) == 0
        until(lambda: caught_up(replica, log.end))
        histories = replica.histories([("user", f"u{n}") for n in range(5000)])
        found = [int(item[:8]) for history in histories for item in history.item_ids]
        assert sorted(found) == list(range(log.end))
        assert replica.shortage() is None
    replica.close()


def test_room_is_asked_of_the_disk(tmp_path: Path) -> None:
    assert Room(tmp_path, 0).shortage() is None
    short = Room(tmp_path, 1 << 60).shortage()
    assert short is not None
    assert short.wanted == 1 << 60
    assert 0 < short.free < 1 << 60
    tried = Room(tmp_path, 0)
    tried.ran_out()
    assert isinstance(tried.shortage(), Shortage)


def test_files_with_many_names_take_their_room_once(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "a").write_bytes(os.urandom(100_000))
    (tmp_path / "b").hardlink_to(tmp_path / "db" / "a")
    assert 100_000 <= used_bytes(tmp_path) < 150_000
    assert used_bytes(tmp_path / "nothing") == 0
