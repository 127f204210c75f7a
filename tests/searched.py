"""Looking for ids in every file of folders, what is compressed opened: the proof of an erasure."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

_PIECE = 8  # bytes of an id that stay together in LZ4 and Snappy, which copy what they have not seen as it is


def files_with(folder: Path, ids: Sequence[str]) -> set[str]:
    """Paths, below the folder, of files that hold one of the ids: random ones, of which a piece tells too."""
    pieces = [name[start : start + _PIECE].encode() for name in ids for start in range(0, len(name), _PIECE)]
    coded = [name.encode().hex().encode() for name in ids]  # as RocksDB's own log writes keys
    found = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        where = str(path.relative_to(folder))
        if any(piece in where.encode() for piece in pieces):
            found.add(where)
        try:
            held = list(_opened(path))
        except FileNotFoundError:  # it has gone meanwhile
            continue
        if any(one in part for part in held for one in (*pieces, *coded)):
            found.add(where)
    return found


def _opened(path: Path) -> Iterator[bytes]:
    """What a file says: its bytes, and what they hold compressed."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet" and data[-4:] == b"PAR1":
        yield repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
    elif data[:4] == b"Obj\x01":
        yield from _avro(data)
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)


def _avro(data: bytes) -> Iterator[bytes]:
    """The blocks of an Avro file: two numbers, then raw deflate, between marks that its last bytes repeat."""
    for block in data.split(data[-16:])[1:-1]:
        start = 0
        for _ in range(2):
            while block[start] & 0x80:
                start += 1
            start += 1
        try:
            yield zlib.decompress(block[start:], -15)
        except zlib.error:  # not compressed: its bytes have been looked at
            continue
