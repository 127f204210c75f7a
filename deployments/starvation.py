"""How long a thread that could run is not let: the machine has more to do than it can."""

import time
from io import FileIO

_EVERY_S = 0.1


class Starvation:
    """The share of the last tenths of a second in which the thread that asks waited for a core. Of one thread.

    Linux counts it (`/proc/thread-self/schedstat`, nanoseconds); elsewhere the share is 0.
    """

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._looked_s = 0.0
        self._waited_ns = 0
        self._share = 0.0

    def share(self) -> float:
        """From 0, always let, to 1."""
        now_s = time.monotonic()
        passed_s = now_s - self._looked_s
        if passed_s < _EVERY_S:
            return self._share
        waited_ns = self._read_ns()
        found = min(max((waited_ns - self._waited_ns) / (passed_s * 1e9), 0.0), 1.0) if self._looked_s else 0.0
        self._share = (self._share + found) / 2
        self._looked_s, self._waited_ns = now_s, waited_ns
        return self._share

    def _read_ns(self) -> int:
        try:
            if self._file is None:
                self._file = FileIO("/proc/thread-self/schedstat")
            self._file.seek(0)
            return int(self._file.read().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
