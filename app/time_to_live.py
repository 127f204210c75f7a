"""Time to live: which entries of a history count as of a time. The one definition of serving, state and training.

An entry counts as of T while its event time is `oldest_counted(T)` or later, in whole milliseconds. As-of is the
state's watermark online and the case's own time in training; the clock of the process has no say.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
Moments = TypeVar("Moments", int, NDArray[np.int64])


def in_ms(ttl_days: float | None) -> int | None:
    """`state.ttl_days` in milliseconds; None: entries count for ever."""
    return None if ttl_days is None else int(ttl_days * DAY_MS)


def oldest_counted(as_of_ms: Moments, ttl_ms: int) -> Moments:
    """The earliest event time, in milliseconds, that counts as of each of the given times."""
    return as_of_ms - ttl_ms
