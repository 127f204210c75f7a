"""Room on the disk: a writer stops applying while there is too little of it, says so, and goes on by itself."""

import os
import time
from pathlib import Path
from typing import NamedTuple

_SLACK = 1.1  # it goes on only where there is a little more than what it stops at
_AGAIN_S = 2.0  # after RocksDB found no space


class Shortage(NamedTuple):
    """Bytes that are free on the disk, and bytes that should be; prints as one line."""

    free: int
    wanted: int

    def __str__(self) -> str:
        return (
            f"the writer has stopped for want of room on the disk: found {self.free:,} bytes free, wanted "
            f"{self.wanted:,} (state.min_free_bytes); reading goes on, nothing is lost, it goes on by itself"
        )


class Room:
    """Whether the disk of a folder has room for one writer."""

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        """`min_free_bytes`: `state.min_free_bytes`; 0: only RocksDB itself says when there is none."""
        self._folder, self._min_free = folder, min_free_bytes
        self._stopped = False
        self._again = 0.0

    def shortage(self) -> Shortage | None:
        """Why nothing should be written now; None: there is room. Costs one system call."""
        free = free_bytes(self._folder)
        wanted = int(self._min_free * _SLACK) if self._stopped else self._min_free
        self._stopped = free < wanted or time.monotonic() < self._again
        return Shortage(free, self._min_free) if self._stopped else None

    def ran_out(self) -> None:
        """RocksDB found no space, whatever the disk says: nothing is tried for a moment."""
        self._again = time.monotonic() + _AGAIN_S


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written on the disk of a folder, which is there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def used_bytes(folder: Path) -> int:
    """Bytes on the disk of all files below a folder, each counted once however many names it has."""
    seen, size = set(), 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(parent) / name).lstat()
            except OSError:  # RocksDB has removed it meanwhile
                continue
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                size += found.st_blocks * 512
    return size


def is_out_of_space(error: BaseException) -> bool:
    """Whether an error says that the disk is full (rocksdict raises bare exceptions, only their words differ)."""
    words = str(error).lower()
    return "no space left" in words or "quota exceeded" in words


def is_held_by_another(error: BaseException) -> bool:
    """Whether an error says that another process, or handle, has a database open for writing."""
    words = str(error).lower()
    return "lock hold by" in words or "while lock file" in words
