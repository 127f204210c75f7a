"""What others have left on the disk is removed, and nothing that anybody uses."""

import os
import threading
import time
from pathlib import Path

from app.own_folders import hold, remove_abandoned
from app.settings import Settings
from app.state.layout import StatePaths, choose_generation, database
from app.state.leftovers import remove_leftovers
from app.state.position import Position
from app.state.replica import StateReplica
from app.state.store import StateStore

DAY_S = 86_400


def aged(folder: Path, seconds: float) -> None:
    """Makes a folder and its files look as if they had last been written so long ago."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - seconds,) * 2)


def test_folders_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, living = hold(tmp_path / "dead"), hold(tmp_path / "living")
    (tmp_path / "dead" / "LOG").write_text("x")
    (tmp_path / "of somebody else").mkdir()
    dead.close()
    assert remove_abandoned(tmp_path) == []  # it may just be starting
    for name in ("dead", "living"):
        aged(tmp_path / name, 60)
    assert remove_abandoned(tmp_path) == ["dead"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "of somebody else"]
    living.close()
    assert remove_abandoned(tmp_path) == ["living"]
    assert remove_abandoned(tmp_path / "nothing") == []


def test_halves_go_after_a_day_and_readers_of_the_dead_at_once(tmp_path: Path) -> None:
    paths = StatePaths.of(tmp_path)
    choose_generation(paths.databases, 1)
    folders = [database(paths.databases, 1), database(paths.databases, 2), paths.databases / "00000003.new"]
    for folder in (*folders, paths.checkpoint, paths.checkpoint.with_suffix(".new")):
        folder.mkdir()
        (folder / "000001.sst").write_text("x")
    replica = StateReplica.of_home(tmp_path, "killed")
    hold(paths.replicas / "killed").close()
    aged(paths.replicas / "killed", 60)
    (tmp_path / "cache" / "killed").mkdir(parents=True)
    assert remove_leftovers(tmp_path) == ["replicas/killed"]
    for folder in (*folders, paths.checkpoint, paths.checkpoint.with_suffix(".new")):
        aged(folder, 2 * DAY_S)
    (folders[1] / "000002.log").write_text("a rebuild that goes on writing")
    assert sorted(remove_leftovers(tmp_path)) == ["00000003.new", "checkpoint", "checkpoint.new"]
    aged(folders[1], 2 * DAY_S)
    assert remove_leftovers(tmp_path) == ["00000002"]
    assert sorted(path.name for path in paths.databases.iterdir()) == ["00000001", "current"]
    replica.close()


def test_a_rebuild_that_writes_and_removes_files_meanwhile_harms_nobody(tmp_path: Path) -> None:
    paths = StatePaths.of(tmp_path)
    choose_generation(paths.databases, 1)
    half, over = database(paths.databases, 2), threading.Event()
    half.mkdir()

    def rebuild() -> None:
        while not over.is_set():
            for number in range(20):
                (half / f"{number:06d}.log").write_text("x")
            for number in range(20):
                (half / f"{number:06d}.log").unlink()

    thread = threading.Thread(target=rebuild)
    thread.start()
    try:
        assert [remove_leftovers(tmp_path) for _ in range(300)] == [[]] * 300
    finally:
        over.set()
        thread.join()
    assert half.exists()


def test_a_reader_marks_its_folder_for_as_long_as_it_is_open(tmp_path: Path) -> None:
    paths = StatePaths.of(tmp_path)
    store = StateStore(database(paths.databases, 0), Settings())
    position = Position.create(paths.position)
    position.publish(store.outrun(0))
    replica = StateReplica.of_home(tmp_path, "r")
    replica.catch_up()
    aged(paths.replicas / "r", 60)
    assert remove_leftovers(tmp_path) == []
    assert not replica.behind()
    replica.close()
    assert not (paths.replicas / "r").exists()
    replica.catch_up()  # and opens anew
    assert (paths.replicas / "r").exists()
    replica.close()
    position.close()
    store.close()
