"""A reader beside a writer that flushes and removes its logs all the time: what it is promised is there."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.errors import StateUnavailable
from app.state.layout import database, open_primary
from app.state.reader import Kind
from app.state.replica import StateReplica
from app.state.secondary import Secondary
from tests.faults.flushing_child import USERS

_SECONDS = 10.0


def test_a_catch_up_shows_everything_that_was_published_before_it(tmp_path: Path) -> None:
    databases, position = tmp_path / "db", tmp_path / "position"
    arguments = [str(database(databases, 0)), str(position), str(_SECONDS)]
    child = subprocess.Popen([sys.executable, "-m", "tests.faults.flushing_child", *arguments])
    try:
        while not position.exists():
            assert child.poll() is None
            time.sleep(0.01)
        replica, looks = StateReplica(databases, tmp_path / "own", position), 0
        keys: list[tuple[Kind, str]] = [("user", str(user)) for user in range(USERS)]
        while child.poll() is None:
            written = replica.applied("events", 0)
            with contextlib.suppress(StateUnavailable) if not written else contextlib.nullcontext():
                replica.catch_up()
            if not written:
                continue
            looks += 1
            newest = [int(one.item_ids[-1]) if one.item_ids else -1 for one in replica.histories(keys)]
            wanted = [written - 1 - (written - 1 - user) % USERS for user in range(USERS)]
            missing = [want for found, want in zip(newest, wanted, strict=True) if found < want]
            assert not missing, f"look {looks}: message {written - 1} shows, {missing} do not"
        assert child.returncode == 0
        assert looks > 100
    finally:
        child.kill()
        child.wait()


def test_a_catch_up_counts_only_where_the_manifest_stayed_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = open_primary(tmp_path / "db")
    secondary = Secondary(tmp_path / "db", tmp_path / "own")
    assert not secondary.catch_up()
    caught = 0

    class Flushing:
        """A secondary whose writer flushes `left` more times while it catches up."""

        left = 2

        def try_catch_up_with_primary(self) -> None:
            nonlocal caught
            caught += 1
            if self.left:
                self.left -= 1
                primary[b"key"] = b"value"
                primary.flush()

    monkeypatch.setattr(secondary, "_db", Flushing())
    assert secondary.catch_up()
    assert caught == 3
    assert not secondary.catch_up()
    Flushing.left = 1_000_000
    monkeypatch.setattr(secondary, "_db", Flushing())
    with pytest.raises(StateUnavailable, match="changed in every catch-up of 2 s"):
        secondary.catch_up()
    primary.close()
