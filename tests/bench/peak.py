"""Peak memory of this process and all that it has started: what they have in common counted once, and object stores."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from scripts.memory import PeakMemory

_EVERY_S = 0.25


def started() -> list[psutil.Process]:
    """This process and all that it has started, Ray's too."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def held_bytes() -> int:
    """The sum of their PSS without what they map of shared memory, and of their object stores what was ever written."""
    total, stores = 0, dict[int, int]()
    for process in started():
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            stores |= dict(_stores(process.pid))
        except OSError:  # it has ended
            continue
        sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss")}
        total += sizes["Pss:"] - sizes.get("Pss_Shmem:", 0)
    return total + sum(stores.values())


class StartedPeak(PeakMemory):
    """The most that `held_bytes` ever was: `peak`. `spent_s`: CPU seconds that looking took."""

    def __init__(self) -> None:
        super().__init__(lambda: (), _EVERY_S)
        self.spent_s = 0.0

    def sample(self) -> None:
        self.peak = max(self.peak, held_bytes())
        self.spent_s = time.thread_time()


def _stores(pid: int) -> Iterator[tuple[int, int]]:
    """(inode, bytes that it takes) of each object store that a process has open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("/dev/shm/plasma"):
                found = entry.stat()
                yield found.st_ino, found.st_blocks * 512
        except OSError:
            continue
