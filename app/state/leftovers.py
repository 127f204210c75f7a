"""What processes that were killed have left of the state on the disk, removed once nobody can want it any more."""

import shutil
import time
from pathlib import Path

from app.own_folders import remove_abandoned
from app.state.layout import StatePaths, current_generation

_DAY_S = 86_400.0


def remove_leftovers(home: Path, shard: int = -1) -> list[str]:
    """Removes what is left of the node's state, or of one of its shards; what it was.

    Folders of readers and gateways that are dead, at once. Half a database of a rebuild, half a restored checkpoint
    and a checkpoint that nobody fetched, once they have not changed for a day.
    """
    paths = StatePaths.of(home).shard(shard)
    removed = [
        f"{parent.name}/{name}"
        for parent in (paths.replicas, home / "stats" / "replicas", home / "cache")
        for name in remove_abandoned(parent)
    ]
    current, oldest = current_generation(paths.databases), time.time() - _DAY_S
    halves = [folder for folder in paths.databases.glob("[0-9]*") if _is_half(folder.name, current)]
    for folder in (*halves, paths.checkpoint, paths.checkpoint.with_suffix(".new")):
        if folder.is_dir() and _changed(folder) < oldest:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed


def _is_half(name: str, current: int) -> bool:
    return name.endswith(".new") or (name.isdigit() and int(name) > current)


def _changed(folder: Path) -> float:
    """When a file was last put into the folder, or one of its files written (links keep the files' own times)."""
    try:
        return max(folder.stat().st_mtime, *(file.stat().st_mtime for file in folder.iterdir()), 0.0)
    except FileNotFoundError:  # somebody is at work in it
        return time.time()
