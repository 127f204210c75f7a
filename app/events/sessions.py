"""What a session is: rows of a key of which each comes not more than a gap after what was reached before it.

One definition, for windows over the log (`window_merge`) and for the ranker's features (`app.features.session`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def session_begins(
    keys: NDArray[np.integer[Any]], first: NDArray[np.int64], reached: NDArray[np.int64], gap: int
) -> NDArray[np.bool_]:
    """bool (n,): where a session begins.

    Args:
        keys: (n,), rows of one key side by side.
        first: (n,), when each row begins, ascending within a key.
        reached: (n,), the latest end of the key's rows up to each row.
        gap: the longest silence within a session, in the unit of the times.
    """
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (keys[1:] != keys[:-1]) | (first[1:] - reached[:-1] > gap)
    return begins
