"""Which events count already: the rule of lake and state, over identities that the figures keep for themselves."""

import struct

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.events.identity import identity_hashes, named_by_place
from app.stats.held import SEEN, Draft, Held

_I64 = struct.Struct("<q")
_LEAST_LOOKED_AT = 200
_END = b"\xff" * 17  # above every identity


class Identities:
    """Accepted identities within `events.dedup_days` of their arrival. For one thread."""

    def __init__(self, horizon_ms: int) -> None:
        """`horizon_ms`: events of one identity that arrive less than this apart count once."""
        self._horizon_ms = horizon_ms
        self._next, self._new = b"", 0

    def repeats(self, events: pa.Table, draft: Draft) -> NDArray[np.bool_]:
        """bool (n,): which events (EVENT_COLUMNS, in the order of the log) count already; notes the others."""
        hashes = identity_hashes(events["user_id"], events["session_id"], events["event_id"]).tobytes()
        keys = [hashes[place : place + 16] for place in range(0, len(hashes), 16)]
        arrivals = (events["record_time"].cast(pa.int64()).to_numpy() // 1000).tolist()
        asked = list(set(keys))
        seen = {key: value or b"" for key, value in zip(asked, draft.get(SEEN, asked), strict=True)}
        repeated = np.zeros(len(keys), np.bool_)
        never = named_by_place(events).tolist()
        for place, (key, arrived) in enumerate(zip(keys, arrivals, strict=True)):
            held = seen[key]
            if not never[place] and any(abs(arrived - other) < self._horizon_ms for (other,) in _I64.iter_unpack(held)):
                repeated[place] = True
                continue
            seen[key] = held + _I64.pack(arrived)
            draft.put(SEEN, key, seen[key])
            self._new += 1
        return repeated

    def forget(self, held: Held, reached_ms: int) -> int:
        """Looks at the next few identities and forgets those that nothing still to be read can equal; how many.

        Call it now and then; what is still to be read arrived at `reached_ms` or later (`app.state.arrivals`). Twice
        the horizon is kept, for clocks that differ.
        """
        limit, self._new = max(_LEAST_LOOKED_AT, 2 * self._new), 0
        oldest, gone = reached_ms - 2 * self._horizon_ms, []
        for looked, (key, arrivals) in enumerate(held.scan(SEEN, self._next, _END), 1):
            self._next = key
            if max(arrival for (arrival,) in _I64.iter_unpack(arrivals)) < oldest:
                gone.append(key)
            if looked == limit:
                break
        else:
            self._next = b""  # from the start again
        if gone:
            held.write({SEEN: dict.fromkeys(gone)})
        return len(gone)
