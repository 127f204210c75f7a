"""The blocks of Avro's container files, as Iceberg's manifests are written: values stand in them as they are."""

import zlib
from collections.abc import Iterator

import pyarrow as pa

from tests.search.varint import signed, varint

_SYNC_BYTES = 16


def avro_blocks(data: bytes) -> Iterator[bytes]:
    """Each block, decompressed.

    Raises:
        ValueError: an unknown codec.
    """
    place, codec = 4, "null"
    while count := (place_count := _long(data, place))[0]:
        place = place_count[1]
        if count < 0:
            _, place = _long(data, place)
        for _ in range(abs(count)):
            name, place = _bytes(data, place)
            value, place = _bytes(data, place)
            if name == b"avro.codec":
                codec = value.decode()
    place = place_count[1] + _SYNC_BYTES
    while place < len(data):
        _, place = _long(data, place)
        block, place = _bytes(data, place)
        place += _SYNC_BYTES
        yield _plain(block, codec)


def _plain(block: bytes, codec: str) -> bytes:
    if codec == "null":
        return block
    if codec == "deflate":
        return zlib.decompress(block, -15)
    if codec == "zstandard":
        return bytes(pa.CompressedInputStream(pa.BufferReader(block), "zstd").read())
    raise ValueError(f"Avro: found codec {codec}, wanted null, deflate or zstandard")


def _bytes(data: bytes, place: int) -> tuple[bytes, int]:
    size, place = _long(data, place)
    return data[place : place + size], place + size


def _long(data: bytes, place: int) -> tuple[int, int]:
    """A zigzag number and the place behind it."""
    zigzag, place = varint(data, place)
    return signed(zigzag), place
