"""Erasure from checkpoints: all that were there go, one without the user stands in their place."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.erasure.erased import TopicEnd
from app.erasure.places import Subject
from app.errors import MantaError
from app.events.schema import EVENTS
from app.settings import Settings
from app.state import checkpoint
from app.state.batch import Batch
from app.state.checkpoint import MANIFEST, place_of, restore_newest, write_checkpoint, write_checkpoints
from app.state.erase_checkpoints import CheckpointsPlace
from app.state.erasures import erase_here
from app.state.layout import MARK, StatePaths, choose_generation, database
from app.state.reader import EMPTY_HISTORY
from app.state.shares import shard, shard_of, shares
from app.state.states_here import StatesHere, erase_left_behind
from app.state.store import StateStore
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
    assert list(content(tmp_path / "new")["histories"]) == [MARK, b"uother"]

    (report,) = CheckpointsPlace(settings, tmp_path / "nowhere").clear(SUBJECT)
    assert "removed; none could be made anew" in report.detail
    assert list((tmp_path / "store").iterdir()) == []
    assert CheckpointsPlace(settings, tmp_path).clear(SUBJECT)[0].detail == "there was none"


def test_shards_their_checkpoints_and_what_a_command_shows_of_them(tmp_path: Path) -> None:
    section = {"checkpoints": str(tmp_path / "store"), "placement": "sharded", "shards": 2}
    settings = Settings.model_validate({"state": section})
    found = StatesHere(settings, tmp_path)
    assert found.shown(USER) == (EMPTY_HISTORY, None)
    for share in shares(settings.state):
        databases = StatePaths.of(tmp_path).shard(share.shard).databases
        choose_generation(databases, 0)
        store = StateStore(database(databases, 0), settings, share=share)
        clicks = [event(0, "a", user=USER), event(1, "b", user="other"), event(2, "c", user=None, session="s")]
        store.apply(Batch(events=share.taken([*clicks, event(3, None, user=USER, session="s", kind="merge")])))
        if not share.is_shard:
            store.apply(Batch(users=[(USER, b'{"age":3}')]))
        store.close()
    history, columns = found.shown(USER)
    assert (history.item_ids, columns) == (("a", "c"), {"age": 3})
    assert len(write_checkpoints(settings, tmp_path)) == 3
    places = [Path(place_of(str(tmp_path / "store"), share)) for share in shares(settings.state)]
    assert all(list(place.glob("2*/checkpoint.json")) for place in places)
    (tmp_path / "store" / "shard-3-of-4" / "20200101T000000-abcdef").mkdir(parents=True)

    subject = replace(SUBJECT, sessions=("s",))
    erase_left_behind(settings, tmp_path, subject, [shard_of(USER, 2), shard_of("s", 2)])
    assert found.shown(USER)[0].version == history.version
    erase_left_behind(settings, tmp_path, subject, [])  # of shards that are kept elsewhere
    assert found.shown(USER) == (EMPTY_HISTORY, columns)
    found.erase(subject)
    assert found.shown(USER)[0] == EMPTY_HISTORY
    assert found.shown("other")[0].item_ids == ("b",)
    (report,) = CheckpointsPlace(settings, tmp_path).clear(subject)
    assert report.detail == "3 replaced by a new one"
    assert files_with(tmp_path, USER) == []
    assert not (tmp_path / "store" / "shard-3-of-4").exists()
    mine = shard(shard_of("other", 2), 2)
    assert restore_newest(place_of(str(tmp_path / "store"), mine), tmp_path / "new")
    assert list(content(tmp_path / "new")["histories"]) == [MARK, b"uother"]


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
