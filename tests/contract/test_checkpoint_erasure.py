"""Erasure from checkpoints: all that were there go, one without the user stands in their place."""

from pathlib import Path

import pytest

from app.erasure.erased import TopicEnd
from app.erasure.places import Subject
from app.errors import MantaError
from app.events.schema import EVENTS
from app.state import checkpoint
from app.state.checkpoint import MANIFEST, restore_newest, write_checkpoint
from app.state.erase_checkpoints import CheckpointsPlace
from app.state.erasures import erase_here
from app.state.layout import StatePaths
from tests.contract.test_state_checkpoint import content, opened, settings_with
from tests.contract.test_state_readers import event, events
from tests.search.files import files_with

USER = "0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f"
SUBJECT = Subject("e-1", USER, (), 0, {EVENTS: TopicEnd("", {0: 100})})


def test_they_are_replaced_by_one_without_the_user(tmp_path: Path) -> None:
    settings = settings_with(tmp_path / "store")
    store = opened(tmp_path, settings)
    store.apply(events(event(0, "a", user=USER), event(1, "b", user="other")))
    store.close()
    write_checkpoint(settings, tmp_path)
    half = tmp_path / "store" / "20200101T000000-abcdef"
    half.mkdir()
    (half / "000009.sst").write_text(USER)
    making = StatePaths.of(tmp_path).checkpoint.with_suffix(".new")
    making.mkdir()
    (making / "000009.log").write_text(USER)
    store = opened(tmp_path, settings)
    erase_here(store, tmp_path, SUBJECT)
    store.close()
    assert files_with(tmp_path, USER)

    (report,) = CheckpointsPlace(settings, tmp_path).clear(SUBJECT)
    assert report.detail == "2 replaced by a new one"
    assert files_with(tmp_path, USER) == []
    assert restore_newest(str(tmp_path / "store"), tmp_path / "new")
    assert list(content(tmp_path / "new")["histories"]) == [b"uother"]

    (report,) = CheckpointsPlace(settings, tmp_path / "nowhere").clear(SUBJECT)
    assert "removed; none could be made anew" in report.detail
    assert list((tmp_path / "store").iterdir()) == []
    assert CheckpointsPlace(settings, tmp_path).clear(SUBJECT)[0].detail == "there was none"


def test_one_that_was_being_written_meanwhile_is_not_left_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(tmp_path / "store")
    opened(tmp_path, settings).close()
    real = checkpoint._upload

    def upload(place: checkpoint.Place, source: Path) -> tuple[int, int]:  # type: ignore[name-defined]
        done = real(place, source)
        (folder,) = (tmp_path / "store").iterdir()
        next(file for file in folder.iterdir() if file.name != MANIFEST).unlink()
        return done

    monkeypatch.setattr(checkpoint, "_upload", upload)
    with pytest.raises(MantaError, match="an erasure removed files of it"):
        write_checkpoint(settings, tmp_path)
    assert list((tmp_path / "store").iterdir()) == []
