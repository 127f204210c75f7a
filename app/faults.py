"""Named points at which a test can kill the process: `MANTA_FAULT=POINT` or `POINT:N` (the Nth time it is reached)."""

import os
import signal
from collections import Counter

_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Kills this process (SIGKILL) if the environment names the point; costs a look-up otherwise."""
    wanted = os.environ.get("MANTA_FAULT")
    if not wanted or not wanted.startswith(point):
        return
    _reached[point] += 1
    if wanted in (point, f"{point}:{_reached[point]}"):
        os.kill(os.getpid(), signal.SIGKILL)
