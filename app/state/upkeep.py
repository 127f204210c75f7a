"""What the writer looks through now and then, a little at a time: identities of long ago, entries that expired."""

import struct
import time

from rocksdict import Rdict

from app.state.history import drop_expired, is_view
from app.state.layout import FIRST, HISTORIES, OWN, Changes

LEAST_LOOKED_AT = 200
_HISTORIES_LOOKED_AT, _LOOK_AT_HISTORIES_S = 1000, 0.01  # of which events wait for that long at most
_I64 = struct.Struct("<q")


def forgettable(seen: Rdict, first: bytes, limit: int, oldest_ms: int) -> tuple[list[bytes], bytes]:
    """Identities of which everything arrived before a time, among the next few; and where the next look begins."""
    gone: list[bytes] = []
    for looked, (key, arrivals) in enumerate(seen.items(from_key=first), 1):
        if max(arrival for (arrival,) in _I64.iter_unpack(arrivals)) < oldest_ms:
            gone.append(key)
        if looked == limit:
            return gone, key
    return gone, b""  # from the start again


def expired(histories: Rdict, own: Rdict, first: bytes, since: int) -> tuple[Changes, bytes]:
    """Records as they are without what is older than `since` (milliseconds), among the next few; where to go on."""
    changes: Changes = {}
    enough = time.monotonic() + _LOOK_AT_HISTORIES_S
    for looked, (key, record) in enumerate(histories.items(from_key=first or FIRST)):
        if looked == _HISTORIES_LOOKED_AT or (looked and time.monotonic() > enough):
            return changes, key
        kept = drop_expired(record, since)
        if kept is not record:
            changes[HISTORIES, key] = kept
            if is_view(record):
                changes[OWN, key] = drop_expired(own.get(key), since) if kept else None
    return changes, b""  # from the start again
