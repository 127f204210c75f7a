"""In which files of a folder an id stands, in whatever form: raw, encoded, compressed, in pages, blocks, archives."""

import base64
import io
import json
import re
import sqlite3
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from tests.search.avro import avro_blocks
from tests.search.pages import parquet_pages
from tests.search.rocks import log_records, sst_contents
from tests.search.sqlite import SQLITE, sqlite_values

# What readers say to a file that is no whole one of its kind.
_UNREADABLE = (
    ValueError,
    IndexError,
    struct.error,
    zlib.error,
    pa.ArrowException,
    sqlite3.Error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
_TRIES, _AGAIN_S = 5, 0.3
_DEEPEST = 4  # an archive in an archive in an archive
_FRAMES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bz2",
}
_ROCKSDB_LOG = re.compile(r"(\d{6,}\.log|MANIFEST-\d{6,})$")


def files_with(folder: Path, *needles: str) -> list[Path]:
    """Files below `folder`, that hold one of the ids (in their name too); those that vanish meanwhile do not."""
    wanted = [form for needle in needles for form in forms(needle)]
    found = []
    for path in sorted(folder.rglob("*")):
        if any(form in str(path.relative_to(folder)).encode() for form in wanted):
            found.append(path)
            continue
        if not path.is_symlink() and path.is_file() and _holds(path, wanted):
            found.append(path)
    return found


def _holds(path: Path, wanted: Sequence[bytes]) -> bool:
    """Looks again where a file cannot be read because somebody is writing it."""
    for left in reversed(range(_TRIES)):
        try:
            return any(form in part for part in opened(path.read_bytes(), path.name) for form in wanted)
        except FileNotFoundError:
            return False
        except _UNREADABLE:
            if not left:
                raise
            time.sleep(_AGAIN_S)
    raise AssertionError("unreachable")


def forms(needle: str) -> list[bytes]:
    """How an id may be written: UTF-8 and UTF-16, base64 wherever it begins, hex, JSON's and URLs' escapes, numbers."""
    raw = needle.encode()
    found = {raw, needle.encode("utf-16-le"), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {json.dumps(needle)[1:-1].encode(), quote(needle, safe="").encode()}
    found |= {separator.join(map(str, raw)).encode() for separator in (",", ", ")}  # JSON of bytes
    for shift in range(3):  # the characters that are made of the id's bits alone
        first, last = -(-shift * 8 // 6), (shift + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(shift) + raw)[first:last])
    return sorted(found)


def opened(data: bytes, name: str = "", depth: int = 0) -> Iterator[bytes]:
    """The bytes themselves, and the content of whatever they are: told by how they begin, not by the file's name.

    Raises:
        Exception: it begins as something that it is not: a damaged file cannot be vouched for. A Parquet or SST file
            without its end, and a compressed stream that is cut, are looked at as far as they go.
    """
    yield data
    if depth > _DEEPEST:
        return
    for part in _packed(data, name):
        yield from opened(part, "", depth + 1)


def _packed(data: bytes, name: str) -> Iterator[bytes]:
    for magic, codec in _FRAMES.items():
        if data.startswith(magic):
            yield _stream(data, codec)
    if data.startswith(b"PAR1") and data.endswith(b"PAR1") and len(data) > 12:
        yield from parquet_pages(data)
    elif data.startswith(b"Obj\x01"):
        yield from avro_blocks(data)
    elif data.startswith(SQLITE):
        yield from sqlite_values(data)
    elif data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                yield member.filename.encode()
                yield archive.read(member)
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                yield entry.name.encode()
                file = archive.extractfile(entry)
                if file is not None:
                    yield file.read()
    elif _ROCKSDB_LOG.search(name):
        yield log_records(data)
    else:
        yield from sst_contents(data)


def _stream(data: bytes, codec: str) -> bytes:
    """What a compressed stream holds; of a cut one the part that can be read."""
    parts = []
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            while part := stream.read(1 << 20):
                parts.append(part)
    except (OSError, pa.ArrowException):
        if not parts:
            return b""
    return b"".join(parts)
