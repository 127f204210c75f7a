"""The pure fold of events to a history, and the record that keeps one: columnar, versioned, canonical.

A record is a function of the *set* of events folded, never of their order of arrival: entries stand in the order of
(event time, partition, offset), the newest `max_history` of them, `remove` events among them. What a removal takes
out is left out on reading, so that an event that arrives late finds its removal still there.

Where entries have a time to live, a reader leaves out those older than `since`, and the version is of what is left.
So it makes no difference whether they still stand in the record: they are its oldest, and `since` only ever rises.
"""

import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import orjson

from app.errors import StateUnavailable
from app.events.schema import IMPRESSION, MERGE, REMOVE
from app.state.reader import EMPTY_HISTORY, UserHistory

FORMAT = 1
NOT_IN_HISTORY = frozenset({IMPRESSION, MERGE})

# format, flags, bytes of a type code, bytes of the type names, entries, bytes of the ids, version
HEADER = struct.Struct("<BBBxIIIQ")
VIEW = 1  # flag: folded from the user's own record and those of merged sessions
_I64, _I32, _F32 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<f")
_ROW = struct.Struct("<qqifBB")  # the columns of one entry: time, offset, partition, value, bytes of the id, type code
_U64 = (1 << 64) - 1
_VERSION_MASK = (1 << 53) - 1  # also exact as a JSON number
_FLOAT_MAX = float(np.finfo(np.float32).max)
_NAN = float("nan")


class Entry(NamedTuple):
    """One event of a history. Sorts by event time, partition, offset."""

    time: int  # microseconds since 1970
    partition: int
    offset: int
    item_id: str
    event_type: str
    value: float  # NaN: the event had none


def fold(entries: Iterable[Entry], max_history: int, *, view: bool = False) -> bytes:
    """The record of any number of entries in any order: the newest `max_history` by (time, partition, offset)."""
    newest = sorted(entries, key=_place)[-max_history:]
    return _encode(newest, view=view)


def add(record: bytes | None, entries: Sequence[Entry], max_history: int) -> bytes:
    """`fold` of the record's entries and more. Fast where all of them are newer than the record's last."""
    if not record:
        return fold(entries, max_history)
    extended = extend(record, entries, max_history)
    return fold([*entries_of(record), *entries], max_history) if extended is None else extended


def entries_of(record: bytes | None) -> list[Entry]:
    """Everything that a record keeps, removals and removed ones included, oldest first."""
    if not record:
        return []
    parts = _Parts(record)
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
    parts = _Parts(record)
    if since is not None and _oldest(record) < since * 1000:
        _forget(parts, _expired(parts, since))
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
    return UserHistory(
        tuple([items[place] for place in keep]),
        tuple([types[place] for place in keep]),
        times[keep],
        values[keep],
        version,
    )


def drop_expired(record: bytes | None, since: int | None) -> bytes | None:
    """The record without entries older than `since` (milliseconds); None where nothing is left of it."""
    if not record or since is None or _oldest(record) >= since * 1000:
        return record
    parts = _Parts(record)
    expired = _expired(parts, since)
    if expired == parts.n:
        return None
    if _drop(parts, expired):
        return parts.joined(record[1])
    return _encode(entries_of(record)[expired:], view=is_view(record))


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


class _Parts:
    """A record taken apart into the bytes of its columns."""

    __slots__ = (
        "codes",
        "ids",
        "lengths",
        "n",
        "names",
        "offsets",
        "partitions",
        "times",
        "values",
        "version",
        "width",
    )

    def __init__(self, record: bytes) -> None:
        version, _, width, n_names, n, n_ids, self.version = HEADER.unpack_from(record)
        if version != FORMAT:
            raise StateUnavailable(
                f"history record: found format {version}, wanted {FORMAT}: run `manta state rebuild`"
            )
        self.n, self.width = n, width
        sizes = (HEADER.size, n_names, 8 * n, 8 * n, 4 * n, 4 * n, n, width * n, n_ids)
        columns = [record[start:end] for start, end in pairwise(accumulate(sizes))]
        self.names, self.times, self.offsets, self.partitions, self.values, self.lengths, self.codes, self.ids = columns

    def types(self) -> list[str]:
        """The types that occur, sorted."""
        found: list[str] = orjson.loads(self.names)
        return found

    def type_codes(self) -> Sequence[int]:
        codes: list[int] = np.frombuffer(self.codes, np.uint32).tolist() if self.width > 1 else list(self.codes)
        return codes

    def item_ids(self) -> list[str]:
        text = self.ids.decode()
        ends = accumulate(self.lengths, initial=0)
        if text.isascii():
            return [text[start:end] for start, end in pairwise(ends)]
        return [self.ids[start:end].decode() for start, end in pairwise(ends)]

    def joined(self, flags: int) -> bytes:
        header = HEADER.pack(FORMAT, flags, self.width, len(self.names), self.n, len(self.ids), self.version)
        columns = (
            self.names,
            self.times,
            self.offsets,
            self.partitions,
            self.values,
            self.lengths,
            self.codes,
            self.ids,
        )
        return header + b"".join(columns)


@lru_cache(maxsize=1024)  # there are few event types
def _names_of(event_type: str) -> bytes:
    return orjson.dumps([event_type])


@lru_cache(maxsize=4096)
def _code_of(names: bytes, event_type: str) -> int:
    """The code of a type among a record's; -1: it does not occur."""
    found: list[str] = orjson.loads(names)
    return found.index(event_type) if event_type in found else -1


def _encode_one(entry: Entry, flags: int) -> bytes:
    """`_encode` of one entry, in a fifth of its time: what most writes of new users are."""
    names, item = _names_of(entry.event_type), entry.item_id.encode()
    version = _fingerprint(entry) & _VERSION_MASK
    row = _ROW.pack(entry.time, entry.offset, entry.partition, _float32(entry.value), len(item), 0)
    return HEADER.pack(FORMAT, flags, 1, len(names), 1, len(item), version) + names + row + item


def _encode(entries: Sequence[Entry], *, view: bool = False) -> bytes:
    if len(entries) == 1:
        return _encode_one(entries[0], VIEW if view else 0)
    names = sorted({entry.event_type for entry in entries})
    width = 1 if len(names) <= 256 else 4
    code_of = {name: code for code, name in enumerate(names)}
    codes = [code_of[entry.event_type] for entry in entries]
    columns = (
        orjson.dumps(names),
        *_columns(entries),
        bytes(codes) if width == 1 else array("I", codes).tobytes(),
        b"".join([entry.item_id.encode() for entry in entries]),
    )
    version = sum(map(_fingerprint, entries)) & _VERSION_MASK
    flags = VIEW if view else 0
    header = HEADER.pack(FORMAT, flags, width, len(columns[0]), len(entries), len(columns[-1]), version)
    return header + b"".join(columns)


def _columns(entries: Sequence[Entry]) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Times, offsets, partitions, values and lengths of the ids."""
    times, partitions, offsets, items, _, values = zip(*entries, strict=True) if entries else ((),) * 6
    return (
        array("q", times).tobytes(),
        array("q", offsets).tobytes(),
        array("i", partitions).tobytes(),
        array("f", map(_float32, values)).tobytes(),
        bytes([len(item.encode()) for item in items]),
    )


def _float32(value: float) -> float:
    """What a record can keep of a value."""
    return _NAN if value != value else min(max(value, -_FLOAT_MAX), _FLOAT_MAX)


def _extend_by_one(record: bytes, entry: Entry, max_history: int) -> bytes | None:
    """`extend` by one entry, spliced in without taking the record apart: what most writes of known users are."""
    found, flags, width, n_names, n, n_ids, version = HEADER.unpack_from(record)
    times = HEADER.size + n_names
    code = _code_of(record[HEADER.size : times], entry.event_type)
    if found != FORMAT or width > 1 or code < 0 or not 0 < n < max_history:
        return None
    offsets = times + 8 * n
    partitions = offsets + 8 * n
    values = partitions + 4 * n
    lengths = values + 4 * n
    codes = lengths + n
    ids = codes + n
    last = (
        _I64.unpack_from(record, offsets - 8)[0],
        _I32.unpack_from(record, values - 4)[0],
        _I64.unpack_from(record, partitions - 8)[0],
    )
    if last >= _place(entry):
        return None
    item = entry.item_id.encode()
    version = (version + _fingerprint(entry)) & _VERSION_MASK
    pieces = (
        HEADER.pack(FORMAT, flags, width, n_names, n + 1, n_ids + len(item), version),
        record[HEADER.size : offsets],
        _I64.pack(entry.time),
        record[offsets:partitions],
        _I64.pack(entry.offset),
        record[partitions:values],
        _I32.pack(entry.partition),
        record[values:lengths],
        _F32.pack(_float32(entry.value)),
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
    parts = _Parts(record)
    if parts.n == 0 or parts.width > 1 or len(entries) >= max_history:
        return None
    ordered = sorted(entries, key=_place) if len(entries) > 1 else entries
    if _last_place(parts) >= _place(ordered[0]):
        return None
    names = parts.types()
    if any(entry.event_type not in names for entry in ordered):
        return None
    drop = max(0, parts.n + len(ordered) - max_history)
    if drop and not _drop(parts, drop):
        return None
    times, offsets, partitions, values, lengths = _columns(ordered)
    parts.n += len(ordered)
    parts.times += times
    parts.offsets += offsets
    parts.partitions += partitions
    parts.values += values
    parts.lengths += lengths
    parts.codes += bytes([names.index(entry.event_type) for entry in ordered])
    parts.ids += b"".join([entry.item_id.encode() for entry in ordered])
    parts.version = (parts.version + sum(map(_fingerprint, ordered))) & _VERSION_MASK
    return parts.joined(record[1])


def _last_place(parts: _Parts) -> tuple[int, int, int]:
    last = parts.n - 1
    return (
        _I64.unpack_from(parts.times, 8 * last)[0],
        _I32.unpack_from(parts.partitions, 4 * last)[0],
        _I64.unpack_from(parts.offsets, 8 * last)[0],
    )


def _drop(parts: _Parts, count: int) -> bool:
    """Takes the oldest entries out; False, with nothing done, where a type would no longer occur."""
    gone, kept = parts.codes[:count], parts.codes[count:]
    if parts.width > 1 or any(code not in kept for code in set(gone)):
        return False
    _forget(parts, count)
    return True


def _forget(parts: _Parts, count: int) -> None:
    """Takes the oldest entries out; the names of types stay, also of one that no longer occurs."""
    places = (parts.times[: 8 * count], parts.partitions[: 4 * count], parts.offsets[: 8 * count])
    parts.version = (parts.version - _fingerprints(*places)) & _VERSION_MASK
    parts.ids = parts.ids[sum(parts.lengths[:count]) :]
    parts.times, parts.offsets = parts.times[8 * count :], parts.offsets[8 * count :]
    parts.partitions, parts.values = parts.partitions[4 * count :], parts.values[4 * count :]
    parts.lengths, parts.codes = parts.lengths[count:], parts.codes[parts.width * count :]
    parts.n -= count


def _oldest(record: bytes) -> int:
    """Event time of the oldest entry, microseconds, without taking the record apart; before all where there is none."""
    _, _, _, n_names, n, _, _ = HEADER.unpack_from(record)
    return int(_I64.unpack_from(record, HEADER.size + n_names)[0]) if n else -(1 << 63)


def _expired(parts: _Parts, since: int) -> int:
    """How many entries, the oldest, are of times before `since` (milliseconds)."""
    return int(np.searchsorted(np.frombuffer(parts.times, np.int64), since * 1000))


def _fingerprints(times: bytes, partitions: bytes, offsets: bytes) -> int:
    """The sum of many fingerprints, of columns as records keep them."""
    count = len(partitions) // 4
    if count < 8:  # cheaper one by one
        rows = zip(
            struct.unpack(f"<{count}q", times),
            struct.unpack(f"<{count}i", partitions),
            struct.unpack(f"<{count}q", offsets),
            strict=True,
        )
        return sum(map(_fingerprint, rows)) & _U64
    mixed = np.frombuffer(times, np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.frombuffer(partitions, np.int32).astype(np.int64).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed += np.frombuffer(offsets, np.int64).astype(np.uint64) * np.uint64(0x165667B19E3779F9) + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def _fingerprint(place: Sequence[object]) -> int:
    """64 well-mixed bits (splitmix64) of where an event stands; their sum over the entries is the version."""
    time, partition, offset = place[0], place[1], place[2]
    mixed = (time * 0x9E3779B97F4A7C15 + partition * 0xC2B2AE3D27D4EB4F + offset * 0x165667B19E3779F9 + 1) & _U64  # type: ignore[operator]
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _U64
    return int(mixed ^ (mixed >> 31))
