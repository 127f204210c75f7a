"""Folders under MANTA_HOME that belong to one process for as long as it lives: told apart from what dead ones left.

Their owner holds a lock on a file in them, which the kernel lets go of with the process, however that ends.
"""

import fcntl
import shutil
import time
from pathlib import Path
from typing import IO

_MARK = ".alive"
_YOUNG_S = 10.0  # an owner may be between making its mark and locking it


def hold(folder: Path) -> IO[bytes]:
    """Makes the folder and marks it as owned until the file that is returned is closed, or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = (folder / _MARK).open("wb")
    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return mark


def remove_abandoned(parent: Path) -> list[str]:
    """Removes the folders in `parent` whose owner has gone without doing so; their names."""
    return [mark.parent.name for mark in parent.glob(f"*/{_MARK}") if _abandoned(mark)]


def _abandoned(mark: Path) -> bool:
    try:
        if time.time() - mark.stat().st_mtime < _YOUNG_S:
            return False
        with mark.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)
    except OSError:  # it is held, or its owner has just removed it
        return False
    return True
