"""RocksDB's files: every entry of an SST file, the deleted and the shadowed ones too, and the records of its logs.

Keys are stored as what differs from the key before, and blocks are compressed: neither shows an id in the raw bytes.
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

from tests.search.varint import varint

_MAGIC = 0x88E241B785F4CFF7
_FOOTER, _TRAILER = 53, 5
_OWN_INDEX_FROM = 6  # format version from which the index is named in the meta index
_CODECS = {1: "snappy", 4: "lz4_raw", 5: "lz4_raw", 7: "zstd"}
_LOG_BLOCK, _LOG_HEADER, _LOG_HEADER_RECYCLED = 32_768, 7, 11


def sst_contents(data: bytes) -> Iterator[bytes]:
    """Nothing where it is no SST file; else each entry's key and value, and each meta block.

    Raises:
        ValueError: an SST file in a compression that is not known here.
    """
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        return
    footer = data[-_FOOTER:]
    version = struct.unpack("<I", footer[41:45])[0]
    if version < _OWN_INDEX_FROM:
        offset, place = varint(footer, 1)
        size, place = varint(footer, place)
        index = _handle(footer, place)[0]
        meta = _block(data, offset, size)
    else:
        size = struct.unpack("<I", footer[13:17])[0]
        meta = _block(data, len(data) - _FOOTER - size - _TRAILER, size)
        index = (0, 0)
    for name, value in _entries(meta):
        handle = _handle(value, 0)[0]
        if name == b"rocksdb.index":
            index = handle
        elif b"filter" not in name:  # hashes
            block = _block(data, *handle)
            yield block
            yield from (key + b"\0" + held for key, held in _entries(block))
    for handle in _handles(_block(data, *index)):
        yield from (key + b"\0" + value for key, value in _entries(_block(data, *handle)))


def log_records(data: bytes) -> bytes:
    """The records of a write-ahead log or manifest, joined: long ones lie in pieces."""
    parts = []
    for start in range(0, len(data), _LOG_BLOCK):
        block, place = data[start : start + _LOG_BLOCK], 0
        while place + _LOG_HEADER <= len(block):
            size, kind = struct.unpack_from("<HB", block, place + 4)
            if kind == 0 and size == 0:
                break
            place += _LOG_HEADER_RECYCLED if 5 <= kind <= 8 or kind == 11 else _LOG_HEADER
            parts.append(block[place : place + size])
            place += size
    return b"".join(parts)


def _block(data: bytes, offset: int, size: int) -> bytes:
    """One block as it was before compression."""
    body, kind = data[offset : offset + size], data[offset + size]
    if kind == 0:
        return body
    if kind not in _CODECS:
        raise ValueError(f"SST: found compression {kind}, wanted one of {sorted(_CODECS)}")
    length, start = varint(body, 0)
    packed = body if kind == 1 else body[start:]
    return bytes(pa.Codec(_CODECS[kind]).decompress(packed, length))


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) with whole keys."""
    end, place, key = _entries_end(block), 0, b""
    while place < end:
        shared, place = varint(block, place)
        own, place = varint(block, place)
        size, place = varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + size]
        place += size


def _handles(index: bytes) -> Iterator[tuple[int, int]]:
    """(offset, size) of the data blocks: of an index that repeats sizes, and of one that has values only."""
    end, place, before = _entries_end(index), 0, (0, 0)
    sized = _is_sized(index, end)
    while place < end:
        shared, place = varint(index, place)
        own, place = varint(index, place)
        if sized:
            _, place = varint(index, place)
        place += own
        if sized or not shared:
            before, place = _handle(index, place)
        else:
            change, place = varint(index, place)
            offset, size = before
            before = (offset + size + _TRAILER, size + ((change >> 1) ^ -(change & 1)))
        yield before


def _is_sized(index: bytes, end: int) -> bool:
    """Whether the first entry says how long its value is: then its handle, at offset 0, fills just that."""
    _, place = varint(index, 0)
    own, place = varint(index, place)
    size, place = varint(index, place)
    start = place + own
    if start + size > end:
        return False
    (offset, _), behind = _handle(index, start)
    return offset == 0 and behind == start + size


def _entries_end(block: bytes) -> int:
    restarts = struct.unpack("<I", block[-4:])[0] & 0x7FFFFFFF  # the highest bit tells of a hash index
    hashed = struct.unpack("<I", block[-4:])[0] >> 31
    behind = len(block) - 4
    if hashed:
        behind -= 2 + struct.unpack("<H", block[-6:-4])[0]
    return behind - 4 * int(restarts)


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    offset, place = varint(data, place)
    size, place = varint(data, place)
    return (offset, size), place
