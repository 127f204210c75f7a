"""Peak memory of a running system: the sum of its processes' proportional set sizes and of its shared memory."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import psutil


def proportional_bytes(pids: Iterable[int]) -> int:
    """Sum of PSS over the processes that still live, in bytes: pages that several map are counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def unmapped_shared_bytes() -> int:
    """What lies in /dev/shm, in bytes (the object store; its mapped part is in the PSS too, so this is a bound)."""
    return psutil.disk_usage("/dev/shm").used if Path("/dev/shm").exists() else 0


class PeakMemory:
    """Samples in a thread of its own; `peak` is the largest sum seen, in bytes."""

    def __init__(self, pids: Callable[[], Iterable[int]], every_s: float = 2.0) -> None:
        self.peak = 0
        self._pids, self._every_s = pids, every_s
        self._shared_before = unmapped_shared_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def sample(self) -> None:
        shared = max(0, unmapped_shared_bytes() - self._shared_before)
        self.peak = max(self.peak, proportional_bytes(self._pids()) + shared)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.sample()
