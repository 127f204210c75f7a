"""Every page of a Parquet file, decompressed: dictionary and data pages, whatever the readers would make of them."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.search.varint import signed, varint

# Fields of Thrift's PageHeader that are needed.
_TYPE, _UNPACKED, _PACKED, _V2 = 1, 2, 3, 8
_V2_REPETITION, _V2_DEFINITION, _V2_IS_COMPRESSED = 6, 5, 7
# Thrift's compact types.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


def parquet_pages(data: bytes) -> Iterator[bytes]:
    """The pages of all column chunks; then every text as a reader sees it, for encodings that share beginnings.

    Footer, statistics, page headers and indexes are not compressed: the raw bytes show them.
    """
    source = pa.BufferReader(data)
    metadata = pq.read_metadata(source)
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            offsets = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
            start = min(offsets)
            yield from _chunk(data[start : start + chunk.total_compressed_size], chunk.compression.lower())
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches():
        for column in batch.columns:
            if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
                yield b"\0".join(column.cast(pa.binary()).drop_null().to_pylist())


def _chunk(data: bytes, codec: str) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        header, place = _struct(data, place)
        packed = data[place : place + header[_PACKED]]
        place += header[_PACKED]
        plain = 0
        if _V2 in header:  # the levels of these pages are not compressed
            two = header[_V2]
            plain = two.get(_V2_REPETITION, 0) + two.get(_V2_DEFINITION, 0)
            if two.get(_V2_IS_COMPRESSED) is False:
                plain = len(packed)
        body = packed[plain:]
        if codec != "uncompressed" and body:
            body = pa.Codec("lz4_raw" if codec == "lz4" else codec).decompress(body, header[_UNPACKED] - plain)
        yield bytes(body)


def _struct(data: bytes, place: int) -> tuple[dict[int, Any], int]:
    """Fields by number, and the place behind."""
    fields: dict[int, Any] = {}
    number = 0
    while byte := data[place]:
        place += 1
        kind, step = byte & 15, byte >> 4
        if step:
            number += step
        else:
            zigzag, place = varint(data, place)
            number = signed(zigzag)
        fields[number], place = _value(data, place, kind)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, place
    if kind == _BYTE:
        return data[place], place + 1
    if kind in (_I16, _I32, _I64):
        zigzag, place = varint(data, place)
        return signed(zigzag), place
    if kind == _DOUBLE:
        return None, place + 8
    if kind == _BINARY:
        size, place = varint(data, place)
        return data[place : place + size], place + size
    if kind == _STRUCT:
        return _struct(data, place)
    if kind in (_LIST, _SET):
        return _list(data, place)
    raise ValueError(f"Parquet: a page header with Thrift's type {kind}, wanted one of those that it is made of")


def _list(data: bytes, place: int) -> tuple[list[Any], int]:
    size, kind = data[place] >> 4, data[place] & 15
    place += 1
    if size == 15:
        size, place = varint(data, place)
    found = []
    for _ in range(size):
        if kind in (_TRUE, _FALSE):  # in a list each stands in a byte
            value, place = data[place] == _TRUE, place + 1
        else:
            value, place = _value(data, place, kind)
        found.append(value)
    return found, place
