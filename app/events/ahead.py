"""Times that are ahead of the clock of whoever reads them by more than clocks differ: the writer's was wrong.

A record's timestamp is its writer's clock, and the check of event times goes by it: with a clock that is years ahead
both are. Such a message is kept in the lake and in the history of its user; it moves no watermark and is learnt from by
nobody.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.versions import MOST_AHEAD_MS
from app.events.watermarks import Times

MOST_AHEAD_US = MOST_AHEAD_MS * 1000


def ahead_of(now_us: int, times: Times) -> NDArray[np.bool_]:
    """bool (n,): which times (int64, microseconds) are too far ahead of a clock."""
    return times > now_us + MOST_AHEAD_US


def plausible(rows: pa.Table, time: str, arrival: str) -> pa.Table:
    """Rows without those whose time is too far ahead of their arrival; with a null in either a row stays."""
    moments, arrived = (pc.cast(rows[name], pa.int64()) for name in (time, arrival))
    wrong = pc.fill_null(pc.greater(moments, pc.add(arrived, MOST_AHEAD_US)), False)
    return rows.filter(pc.invert(wrong)) if pc.any(wrong).as_py() else rows
