"""Checkpoints of the state: written beside the writer or without it, restored whole, or not at all."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.errors import MantaError, StateUnavailable
from app.settings import Settings
from app.state.checkpoint import MANIFEST, make_checkpoint, restore_newest, write_checkpoint
from app.state.layout import FAMILIES, StatePaths, choose_generation, database, open_primary
from app.state.store import StateStore
from app.state.writer import StateWriterLoop
from tests.contract.test_state_readers import event, events


def settings_with(place: Path | str, kept: int = 3) -> Settings:
    return Settings.model_validate({"state": {"checkpoints": str(place), "checkpoints_kept": kept}})


def opened(home: Path, settings: Settings) -> StateStore:
    databases = StatePaths.of(home).databases
    choose_generation(databases, 0)
    return StateStore(database(databases, 0), settings)


def content(path: Path) -> dict[str, dict[bytes, bytes]]:
    held = open_primary(path)
    families = {name: held.get_column_family(name) for name in FAMILIES}
    try:
        return {name: dict(family.items()) for name, family in families.items()}
    finally:
        for family in families.values():
            family.close()
        held.close()


def test_written_without_a_writer_and_restored_byte_for_byte(tmp_path: Path) -> None:
    settings = settings_with(tmp_path / "store")
    store = opened(tmp_path, settings)
    store.apply(events(event(0, "a"), event(1, "b", session="s"), event(2, "c", user=None, session="s")))
    store.close()
    report = write_checkpoint(settings, tmp_path)
    assert report.files >= 3
    assert not StatePaths.of(tmp_path).checkpoint.exists()
    assert restore_newest(str(tmp_path / "store"), tmp_path / "new") == report.checkpoint
    original = content(database(StatePaths.of(tmp_path).databases, 0))
    assert content(tmp_path / "new") == original
    assert original["histories"]


def test_a_running_writer_makes_it_when_asked(tmp_path: Path) -> None:
    settings = settings_with((tmp_path / "store").as_uri())
    store, paths = opened(tmp_path, settings), StatePaths.of(tmp_path)
    store.apply(events(event(0, "a")))
    stop = threading.Event()

    def writer() -> None:
        while not stop.wait(0.02):
            if paths.checkpoint_wanted.exists():
                make_checkpoint(store, paths)

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        report = write_checkpoint(settings, tmp_path)
    finally:
        stop.set()
        thread.join()
        store.close()
    assert restore_newest(settings.state.checkpoints, tmp_path / "new") == report.checkpoint
    assert content(tmp_path / "new")["histories"]


def test_a_writer_that_cannot_make_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.state.checkpoint._PATIENCE_S", 0.2)
    settings = settings_with(tmp_path / "store")
    with pytest.raises(StateUnavailable, match="found no state"):
        write_checkpoint(settings, tmp_path)
    store = opened(tmp_path, settings)
    with pytest.raises(StateUnavailable, match="no checkpoint within"):
        write_checkpoint(settings, tmp_path)
    store.close()
    assert not StatePaths.of(tmp_path).checkpoint_wanted.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(MantaError, match="wanted a place that can be written"):
        write_checkpoint(settings_with(tmp_path / "file" / "below"), tmp_path)


def test_damaged_and_unfinished_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "store"
    settings = settings_with(place, kept=2)
    names = []
    yesterday, now = (f"{datetime.now(UTC) - timedelta(hours=hours):%Y%m%dT%H%M%S}-0a1b2c" for hours in (25, 0))
    for name in (yesterday, now, "of somebody else"):
        (place / name).mkdir(parents=True)
    for number in range(3):
        store = opened(tmp_path, settings)
        store.apply(events(event(number, f"i{number}")))
        store.close()
        names.append(write_checkpoint(settings, tmp_path).checkpoint)
        time.sleep(1.1)  # ids have seconds
    assert sorted(folder.name for folder in place.iterdir()) == sorted([now, *names[1:], "of somebody else"])
    newest = place / names[2]
    victim = next(file for file in newest.iterdir() if file.suffix == ".sst")
    victim.write_bytes(victim.read_bytes()[:-1] + b"X")
    (place / "99990101T000000-unfinished").mkdir()
    assert restore_newest(str(place), tmp_path / "new") == names[1]
    assert f"{names[2]} at" in caplog.text
    (place / names[1] / MANIFEST).write_text(json.dumps({"format": 99, "files": {}}))
    assert restore_newest(str(place), tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    assert restore_newest("nowhere://x", tmp_path / "none") is None


def test_a_node_without_state_starts_from_the_newest(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    settings = settings_with(tmp_path / "store")
    store = opened(old, settings)
    store.apply(events(event(0, "a"), event(1, "b")))
    offsets = store.offsets()
    store.close()
    write_checkpoint(settings, old)
    new.mkdir()
    loop = StateWriterLoop(settings, new)
    restored = loop._open(0)
    assert restored is not None
    assert restored.offsets() == offsets
    restored.apply(events(event(2, "c")))
    restored.close()
    again = StateWriterLoop(settings, new)._open(0)  # what it has by now is not replaced
    assert again is not None
    assert again.offsets() == {"events": {0: 3}}
    again.close()
