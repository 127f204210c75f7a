"""The record that keeps a history: columnar, versioned, canonical. What it stands for, says `app.state.history`."""

import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import orjson

from app.errors import StateUnavailable

FORMAT = 1

# format, flags, bytes of a type code, bytes of the type names, entries, bytes of the ids, version
HEADER = struct.Struct("<BBBxIIIQ")
VIEW = 1  # flag: folded from the user's own record and those of merged sessions
_I64, _I32, _F32 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<f")
_ROW = struct.Struct("<qqifBB")  # the columns of one entry: time, offset, partition, value, bytes of the id, type code
_U64 = (1 << 64) - 1
VERSION_MASK = (1 << 53) - 1  # also exact as a JSON number
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


class Parts:
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
def code_of(names: bytes, event_type: str) -> int:
    """The code of a type among a record's; -1: it does not occur."""
    found: list[str] = orjson.loads(names)
    return found.index(event_type) if event_type in found else -1


def _encode_one(entry: Entry, flags: int) -> bytes:
    """`encode` of one entry, in a fifth of its time: what most writes of new users are."""
    names, item = _names_of(entry.event_type), entry.item_id.encode()
    version = fingerprint(entry) & VERSION_MASK
    row = _ROW.pack(entry.time, entry.offset, entry.partition, float32(entry.value), len(item), 0)
    return HEADER.pack(FORMAT, flags, 1, len(names), 1, len(item), version) + names + row + item


def encode(entries: Sequence[Entry], *, view: bool = False) -> bytes:
    """The record of entries in the order in which they stand."""
    if len(entries) == 1:
        return _encode_one(entries[0], VIEW if view else 0)
    names = sorted({entry.event_type for entry in entries})
    width = 1 if len(names) <= 256 else 4
    code_of = {name: code for code, name in enumerate(names)}
    codes = [code_of[entry.event_type] for entry in entries]
    columns = (
        orjson.dumps(names),
        *columns_of(entries),
        bytes(codes) if width == 1 else array("I", codes).tobytes(),
        b"".join([entry.item_id.encode() for entry in entries]),
    )
    version = sum(map(fingerprint, entries)) & VERSION_MASK
    flags = VIEW if view else 0
    header = HEADER.pack(FORMAT, flags, width, len(columns[0]), len(entries), len(columns[-1]), version)
    return header + b"".join(columns)


def columns_of(entries: Sequence[Entry]) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Times, offsets, partitions, values and lengths of the ids."""
    times, partitions, offsets, items, _, values = zip(*entries, strict=True) if entries else ((),) * 6
    return (
        array("q", times).tobytes(),
        array("q", offsets).tobytes(),
        array("i", partitions).tobytes(),
        array("f", map(float32, values)).tobytes(),
        bytes([len(item.encode()) for item in items]),
    )


def float32(value: float) -> float:
    """What a record can keep of a value."""
    return _NAN if value != value else min(max(value, -_FLOAT_MAX), _FLOAT_MAX)


def last_place(parts: Parts) -> tuple[int, int, int]:
    """Time, partition and offset of the newest entry."""
    last = parts.n - 1
    return (
        _I64.unpack_from(parts.times, 8 * last)[0],
        _I32.unpack_from(parts.partitions, 4 * last)[0],
        _I64.unpack_from(parts.offsets, 8 * last)[0],
    )


def forget(parts: Parts, count: int) -> None:
    """Takes the oldest entries out; the names of types stay, also of one that no longer occurs."""
    places = (parts.times[: 8 * count], parts.partitions[: 4 * count], parts.offsets[: 8 * count])
    parts.version = (parts.version - _fingerprints(*places)) & VERSION_MASK
    parts.ids = parts.ids[sum(parts.lengths[:count]) :]
    parts.times, parts.offsets = parts.times[8 * count :], parts.offsets[8 * count :]
    parts.partitions, parts.values = parts.partitions[4 * count :], parts.values[4 * count :]
    parts.lengths, parts.codes = parts.lengths[count:], parts.codes[parts.width * count :]
    parts.n -= count


def oldest(record: bytes) -> int:
    """Event time of the oldest entry, microseconds, without taking the record apart; before all where there is none."""
    _, _, _, n_names, n, _, _ = HEADER.unpack_from(record)
    return int(_I64.unpack_from(record, HEADER.size + n_names)[0]) if n else -(1 << 63)


def expired(parts: Parts, since: int) -> int:
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
        return sum(map(fingerprint, rows)) & _U64
    mixed = np.frombuffer(times, np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.frombuffer(partitions, np.int32).astype(np.int64).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed += np.frombuffer(offsets, np.int64).astype(np.uint64) * np.uint64(0x165667B19E3779F9) + np.uint64(1)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def fingerprint(place: Sequence[object]) -> int:
    """64 well-mixed bits (splitmix64) of where an event stands; their sum over the entries is the version."""
    time, partition, offset = place[0], place[1], place[2]
    mixed = (time * 0x9E3779B97F4A7C15 + partition * 0xC2B2AE3D27D4EB4F + offset * 0x165667B19E3779F9 + 1) & _U64  # type: ignore[operator]
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _U64
    return int(mixed ^ (mixed >> 31))
