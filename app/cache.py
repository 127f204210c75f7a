"""What a gateway replica keeps on disk to answer without computing: the bundle's lists, and its own answers.

Each replica has its own folder, opened by it alone and deleted with it.
"""

import contextlib
import logging
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from rocksdict import (
    DBCompactionStyle,
    FifoCompactOptions,
    IngestExternalFileOptions,
    Options,
    Rdict,
    SstFileWriter,
    WriteOptions,
)

from app.errors import BundleError
from app.models.interactions import Rows

EXPIRY = struct.Struct("<d")  # seconds since 1970, before each value: RocksDB's own time to live shows in the values
WRITE_BUFFER = 4_000_000
AGAIN_S = 10.0  # after the disk was full

logger = logging.getLogger(__name__)


def write_lists_sst(file: Path, lists: Mapping[str, Rows]) -> None:
    """Writes precomputed lists as one SST file: `u:<user_id>` and `i:<item_id>` -> int32 rows, best first.

    Raises:
        ValueError: there are no lists; RocksDB knows no empty SST file.
    """
    if not lists:
        raise ValueError(f"{file}: found no lists, wanted at least one (leave the file out)")
    writer = SstFileWriter(Options(raw_mode=True))
    writer.open(str(file))
    for key, rows in sorted((key.encode(), rows) for key, rows in lists.items()):
        writer[key] = np.ascontiguousarray(rows, "<i4").tobytes()
    writer.finish()


def copy_lists_sst(source: Path, target: Path, leave_out: Collection[str]) -> int:
    """Writes the lists of one SST file into another, without those of some keys; how many there were of these.

    Nothing is written where none is left. A folder beside `target` is used meanwhile.

    Raises:
        BundleError: `source` is no SST file of this format.
    """
    store = ListStore(target.with_suffix(".reading"), source)
    try:
        gone = {key.encode() for key in leave_out}
        found = sum(store.rows(key) is not None for key in leave_out)
        writer: SstFileWriter | None = None
        for key, rows in store.items():
            if key in gone:
                continue
            if writer is None:
                writer = SstFileWriter(Options(raw_mode=True))
                writer.open(str(target))
            writer[key] = rows
        if writer is not None:
            writer.finish()
    finally:
        store.close()
    return found


class ListStore:
    """A bundle's precomputed lists. Opening takes in a copy of the SST file (milliseconds); the bundle keeps it."""

    def __init__(self, folder: Path, sst: Path) -> None:
        """Opens `folder`, made anew.

        Raises:
            BundleError: `sst` is no SST file of this format.
        """
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._store = Rdict(str(folder), _options())
        options = IngestExternalFileOptions()
        options.set_move_files(False)  # a move would take the file out of the bundle
        try:
            self._store.ingest_external_file([str(sst)], options)
        except Exception as error:
            self.close()
            raise BundleError(f"{sst}: found no list file ({error}), wanted an SST file of int32 rows") from None

    def rows(self, key: str) -> Rows | None:
        """int32 rows, best first; None: no such list."""
        value = self._store.get(key.encode())
        return None if value is None else np.frombuffer(value, "<i4")

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its rows as they are stored, in the order of the keys."""
        yield from self._store.items()

    def close(self) -> None:
        """Closes and deletes the folder."""
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class AnswerCache:
    """Encoded answers by key, until they expire, on at most `max_bytes` of disk: the oldest files go first.

    Whether an answer still holds is the key's business: it names all that the answer depends on. Where the disk has no
    room there is no cache for a while: what was kept is removed, and it begins anew.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """Opens `folder`, made anew. `clock`: seconds since 1970."""
        self._folder, self._max_bytes, self._clock = folder, max_bytes, clock
        self._store: Rdict | None = None
        self._again = 0.0
        self.hits = 0
        self.misses = 0
        self._attempt(self._open)

    def get(self, key: bytes) -> bytes | None:
        """The answer kept under `key`, unless it has expired."""
        held: bytes | None = None if self._store is None else self._store.get(key)
        if held is None or EXPIRY.unpack_from(held)[0] <= self._clock():
            self.misses += 1
            return None
        self.hits += 1
        return held[EXPIRY.size :]

    def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """Keeps an answer for `ttl_s` seconds, where there is room."""
        now = self._clock()
        if self._store is None and now >= self._again:
            self._attempt(self._open)
        store = self._store
        if store is not None:
            self._attempt(lambda: store.put(key, EXPIRY.pack(now + ttl_s) + value))

    def close(self) -> None:
        """Closes and deletes the folder."""
        if self._store is not None:
            with contextlib.suppress(Exception):  # what cannot be flushed is removed all the same
                self._store.close()
            self._store = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        options = _options()
        fifo = FifoCompactOptions()
        fifo.max_table_files_size = max(self._max_bytes - 2 * WRITE_BUFFER, self._max_bytes // 4)
        options.set_compaction_style(DBCompactionStyle.fifo())
        options.set_fifo_compaction_options(fifo)
        self._store = Rdict(str(self._folder), options)
        unlogged = WriteOptions()
        unlogged.disable_wal = True  # it is deleted with its replica: nothing to recover
        self._store.set_write_options(unlogged)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # rocksdict raises bare exceptions
            logger.warning("answers are not cached for %.0f s: %s", AGAIN_S, error)
            self.close()
            self._again = self._clock() + AGAIN_S


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER)
    options.set_max_background_jobs(1)
    options.set_keep_log_file_num(1)
    return options
