"""The searcher that erasure is judged by finds an id wherever it may hide, and says nothing where there is none."""

import base64
import gzip
import io
import json
import shutil
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import load_catalog
from rocksdict import BlockBasedOptions, DBCompressionType, Options, Rdict

from app.cache import write_lists_sst
from app.state.layout import open_primary
from tests.search.files import files_with

ID = "f3ö1c9a0b77e4d25a6b8c0d1e2f3a4b5"
OTHERS = [f"f3ö1c9a0b77e4d25a6b8c0d1e2f3a{number:03d}" for number in range(400)]  # shares all but the end


def ids(found: str) -> list[str]:
    return [*OTHERS[:200], found, *OTHERS[200:]]


def parquet(codec: str, **options: object) -> Callable[[Path, str], None]:
    def write(folder: Path, found: str) -> None:
        texts = pa.table({"n": range(401), "user_id": ids(found), "wide": ["x" * 40] * 401})
        pq.write_table(texts, folder / "a.parquet", compression=codec, write_statistics=False, **options)

    return write


def lists(folder: Path, found: str) -> None:
    write_lists_sst(folder / "lists.sst", {f"u:{name}": pa.array([1], pa.int32()).to_numpy() for name in ids(found)})


def database(folder: Path, found: str, change: Callable[[Rdict, str], None], compression: DBCompressionType) -> None:
    options = Options(raw_mode=True)
    options.set_compression_type(compression)
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(10, False)
    options.set_block_based_table_factory(blocks)
    store = Rdict(str(folder / "db"), options)
    for name in ids(found):
        store[f"u{name}".encode()] = b'{"columns": "of somebody"}' * 3
    change(store, found)
    store.flush()
    store.close()
    (folder / "db" / "LOG").unlink()


def kept(store: Rdict, found: str) -> None:
    assert store[f"u{found}".encode()]


def deleted(store: Rdict, found: str) -> None:
    """In the file it is only as a deleted key."""
    del store[f"u{found}".encode()]


def range_deleted(store: Rdict, found: str) -> None:
    store.delete_range(f"u{found}".encode(), f"u{found}\xff".encode())


def shadowed(store: Rdict, found: str) -> None:
    """Its value stands in the older of two files, where readers do not come any more."""
    store[b"z"] = found.encode()
    store.flush()
    store[b"z"] = b"nothing"


def rocks(change: Callable[[Rdict, str], None], codec: Callable[[], DBCompressionType]) -> Callable[[Path, str], None]:
    return lambda folder, found: database(folder, found, change, codec())


def write_ahead(folder: Path, found: str, shifts: range = range(32_768 - 80, 32_768, 8)) -> None:
    """In the log alone, just where two pieces of a record meet."""
    for shift in shifts:
        store = open_primary(folder / "db", ("users",))
        users = store.get_column_family("users")
        users[b"k"] = b"a" * shift + found.encode()
        users.flush_wal(True)
        (log,) = (folder / "db").glob("*.log")
        (folder / f"{shift:06d}.log").write_bytes(log.read_bytes())
        users.close()
        store.close()
        shutil.rmtree(folder / "db")


def sqlite(folder: Path, found: str) -> None:
    """In a value that overflows its page, just where the pieces meet."""
    with sqlite3.connect(folder / "a.db") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (v TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("a" * shift + found,) for shift in range(0, 5000, 16)])
    connection.close()


def iceberg(folder: Path, found: str) -> None:
    """In the bounds of a manifest alone."""
    catalog = load_catalog("c", type="sql", uri=f"sqlite:///{folder}/c.db", warehouse=f"file://{folder}")
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", pa.schema([("u", pa.string())]))
    with table.transaction() as change:
        change.set_properties({"write.metadata.metrics.default": "full"})
    table.append(pa.table({"u": [found]}))
    for path in folder.rglob("*.parquet"):
        path.unlink()


def archives(folder: Path, found: str) -> None:
    """A gzip in a tar in a zip."""
    inner, outer = io.BytesIO(), gzip.compress(found.encode())
    with tarfile.open(fileobj=inner, mode="w") as tar:
        entry = tarfile.TarInfo("a.gz")
        entry.size = len(outer)
        tar.addfile(entry, io.BytesIO(outer))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tar", inner.getvalue())


def frame(codec: str) -> Callable[[Path, str], None]:
    def write(folder: Path, found: str) -> None:
        with pa.CompressedOutputStream(str(folder / "frame"), codec) as stream:
            stream.write(b"a" * 100_000 + found.encode() + b"a" * 100_000)

    return write


def text(form: Callable[[bytes], bytes]) -> Callable[[Path, str], None]:
    def write(folder: Path, found: str) -> None:
        (folder / "a").write_bytes(form(found.encode()))

    return write


def name(folder: Path, found: str) -> None:
    (folder / f"of-{found}.json").touch()


def shifted(shift: int) -> Callable[[bytes], bytes]:
    return lambda found: base64.b64encode(b"x" * shift + found + b"yz")


PLACES: dict[str, Callable[[Path, str], None]] = {
    "raw": text(lambda found: b"line\nuser " + found + b" came\n"),
    "a name": name,
    "JSON": text(lambda found: json.dumps({"user": found.decode()}).encode()),
    "JSON of bytes": text(lambda found: json.dumps(list(b"12" + found)).encode()),
    **{f"base64 +{shift}": text(shifted(shift)) for shift in range(3)},
    **{f"Parquet {codec}": parquet(codec) for codec in ("none", "snappy", "zstd", "gzip", "lz4")},
    "Parquet without dictionary": parquet("zstd", use_dictionary=False, data_page_version="2.0"),
    "Parquet of shared beginnings": parquet(
        "zstd", use_dictionary=False, column_encoding={"user_id": "DELTA_BYTE_ARRAY"}
    ),
    "SST of a bundle": lists,
    "SST lz4": rocks(kept, DBCompressionType.lz4),
    "SST zstd": rocks(kept, DBCompressionType.zstd),
    "SST snappy": rocks(kept, DBCompressionType.snappy),
    "SST deleted": rocks(deleted, DBCompressionType.lz4),
    "SST range deleted": rocks(range_deleted, DBCompressionType.none),
    "SST shadowed": rocks(shadowed, DBCompressionType.lz4),
    "write-ahead log": write_ahead,
    "sqlite": sqlite,
    "Avro": iceberg,
    "archives": archives,
    **{f"{codec} frame": frame(codec) for codec in ("gzip", "zstd", "lz4", "bz2")},
}


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_where_it_is_and_nowhere_else(place: str, tmp_path: Path) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    for folder, name in ((with_it, ID), (without, ID[:-1] + "_")):
        folder.mkdir()
        PLACES[place](folder, name)
    assert files_with(with_it, ID)
    assert files_with(without, ID) == []


def test_every_piece_of_a_log_is_put_to_the_next(tmp_path: Path) -> None:
    write_ahead(tmp_path, ID)
    logs = sorted(tmp_path.glob("*.log"))
    assert files_with(tmp_path, ID) == logs
    assert not all(ID.encode() in log.read_bytes() for log in logs), "none lies in two pieces"
