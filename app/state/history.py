"""The pure fold of events to a history, and the record that keeps one: columnar, versioned, canonical.

A record is a function of the *set* of events folded, never of their order of arrival: entries stand in the order of
(event time, partition, offset), the newest `max_history` of them, `remove` events among them. What a removal takes
out is left out on reading, so that an event that arrives late finds its removal still there.

Where entries have a time to live, a reader leaves out those older than `since`, and the version is of what is left.
So it makes no difference whether they still stand in the record: they are its oldest, and `since` only ever rises.
"""

import struct
from collections.abc import Iterable, Sequence

import numpy as np

from app.events.schema import REMOVE
from app.state.reader import EMPTY_HISTORY, UserHistory
from app.state.record import (
    FORMAT,
    HEADER,
    VERSION_MASK,
    VIEW,
    Entry,
    Parts,
    code_of,
    columns_of,
    encode,
    expired,
    fingerprint,
    float32,
    forget,
    last_place,
    oldest,
)
from app.weighing import NEVER, NOT_IN_HISTORY

__all__ = ["NOT_IN_HISTORY", "Entry", "add", "drop_expired", "entries_of", "extend", "fold", "is_view", "read"]

_I64, _I32, _F32 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<f")


def fold(entries: Iterable[Entry], max_history: int, *, view: bool = False) -> bytes:
    """The record of any number of entries in any order: the newest `max_history` by (time, partition, offset)."""
    newest = sorted(entries, key=_place)[-max_history:]
    return encode(newest, view=view)


def add(record: bytes | None, entries: Sequence[Entry], max_history: int) -> bytes:
    """`fold` of the record's entries and more. Fast where all of them are newer than the record's last."""
    if not record:
        return encode(entries) if len(entries) == 1 else fold(entries, max_history)
    extended = extend(record, entries, max_history)
    return fold([*entries_of(record), *entries], max_history) if extended is None else extended


def entries_of(record: bytes | None) -> list[Entry]:
    """Everything that a record keeps, removals and removed ones included, oldest first."""
    if not record:
        return []
    parts = Parts(record)
    kinds = parts.types()
    return [
        Entry(*row)
        for row in zip(
            np.frombuffer(parts.times, np.int64).tolist(),
            np.frombuffer(parts.partitions, np.int32).tolist(),
            np.frombuffer(parts.offsets, np.int64).tolist(),
            parts.item_ids(),
            (kinds[code] for code in parts.type_codes()),
            np.frombuffer(parts.values, np.float32).tolist(),
            strict=True,
        )
    ]


def read(record: bytes | None, since: int | None = None) -> UserHistory:
    """The history that a record means: removals applied. None: unknown.

    Args:
        record: as it is stored.
        since: earliest event time that counts (`app.time_to_live`), milliseconds; None: all count.

    Raises:
        StateUnavailable: the record is of another format.
    """
    if not record:
        return EMPTY_HISTORY
    parts = Parts(record)
    if since is not None and oldest(record) < since * 1000:
        forget(parts, expired(parts, since))
    if parts.n == 0:
        return EMPTY_HISTORY
    items = parts.item_ids()
    kinds = parts.types()
    types = (kinds[0],) * parts.n if len(kinds) == 1 else tuple([kinds[code] for code in parts.type_codes()])
    times = np.frombuffer(parts.times, np.int64) // 1000
    values = np.frombuffer(parts.values, np.float32)
    version = parts.version or 1
    if REMOVE not in kinds:
        return UserHistory(tuple(items), types, times, values, version)
    keep = _kept(items, types)
    followed = np.append(times[1:], NEVER)
    return UserHistory(
        tuple([items[place] for place in keep]),
        tuple([types[place] for place in keep]),
        times[keep],
        values[keep],
        version,
        followed[keep],
    )


def drop_expired(record: bytes | None, since: int | None) -> bytes | None:
    """The record without entries older than `since` (milliseconds); None where nothing is left of it."""
    if not record or since is None or oldest(record) >= since * 1000:
        return record
    parts = Parts(record)
    gone = expired(parts, since)
    if gone == parts.n:
        return None
    if _drop(parts, gone):
        return parts.joined(record[1])
    return encode(entries_of(record)[gone:], view=is_view(record))


def is_view(record: bytes | None) -> bool:
    """Whether the record also holds entries of merged sessions (then the user's own stand elsewhere)."""
    return bool(record) and bool(record[1] & VIEW)  # type: ignore[index]


def _place(entry: Entry) -> tuple[int, int, int]:
    return entry[:3]


def _kept(items: Sequence[str], types: Sequence[str]) -> list[int]:
    """Places that stay: a removal goes, and with it every earlier entry of its item."""
    removed: set[str] = set()
    keep: list[int] = []
    for place in range(len(items) - 1, -1, -1):
        if types[place] == REMOVE:
            removed.add(items[place])
        elif items[place] not in removed:
            keep.append(place)
    keep.reverse()
    return keep


def _extend_by_one(record: bytes, entry: Entry, max_history: int) -> bytes | None:
    """`extend` by one entry, spliced in without taking the record apart: what most writes of known users are."""
    found, flags, width, n_names, n, n_ids, version = HEADER.unpack_from(record)
    time, partition, offset, item_id, kind, value = entry
    times = HEADER.size + n_names
    code = code_of(record[HEADER.size : times], kind)
    if found != FORMAT or width > 1 or code < 0 or not 0 < n < max_history:
        return None
    offsets = times + 8 * n
    partitions = offsets + 8 * n
    values = partitions + 4 * n
    lengths = values + 4 * n
    codes = lengths + n
    ids = codes + n
    (newest,) = _I64.unpack_from(record, offsets - 8)
    if newest >= time:
        last = (newest, _I32.unpack_from(record, values - 4)[0], _I64.unpack_from(record, partitions - 8)[0])
        if last >= (time, partition, offset):
            return None
    item = item_id.encode()
    version = (version + fingerprint(entry)) & VERSION_MASK
    pieces = (
        HEADER.pack(FORMAT, flags, width, n_names, n + 1, n_ids + len(item), version),
        record[HEADER.size : offsets],
        _I64.pack(time),
        record[offsets:partitions],
        _I64.pack(offset),
        record[partitions:values],
        _I32.pack(partition),
        record[values:lengths],
        _F32.pack(float32(value)),
        record[lengths:codes],
        bytes((len(item),)),
        record[codes:ids],
        bytes((code,)),
        record[ids:],
        item,
    )
    return b"".join(pieces)


def extend(record: bytes, entries: Sequence[Entry], max_history: int) -> bytes | None:
    """The record with newer entries at its end, or None where that is not all there is to do."""
    if len(entries) == 1 and (longer := _extend_by_one(record, entries[0], max_history)) is not None:
        return longer
    parts = Parts(record)
    if parts.n == 0 or parts.width > 1 or len(entries) >= max_history:
        return None
    ordered = sorted(entries, key=_place) if len(entries) > 1 else entries
    if last_place(parts) >= _place(ordered[0]):
        return None
    names = parts.types()
    if any(entry.event_type not in names for entry in ordered):
        return None
    drop = max(0, parts.n + len(ordered) - max_history)
    if drop and not _drop(parts, drop):
        return None
    times, offsets, partitions, values, lengths = columns_of(ordered)
    parts.n += len(ordered)
    parts.times += times
    parts.offsets += offsets
    parts.partitions += partitions
    parts.values += values
    parts.lengths += lengths
    parts.codes += bytes([names.index(entry.event_type) for entry in ordered])
    parts.ids += b"".join([entry.item_id.encode() for entry in ordered])
    parts.version = (parts.version + sum(map(fingerprint, ordered))) & VERSION_MASK
    return parts.joined(record[1])


def _drop(parts: Parts, count: int) -> bool:
    """Takes the oldest entries out; False, with nothing done, where a type would no longer occur."""
    gone, kept = parts.codes[:count], parts.codes[count:]
    if parts.width > 1 or any(code not in kept for code in set(gone)):
        return False
    forget(parts, count)
    return True
