"""Where the state lies on disk and how RocksDB is opened: `db/<generation>/`, and `db/current` names one of them."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rocksdict import BlockBasedOptions, ColumnFamily, DBCompressionType, Options, Rdict

from app.errors import StateUnavailable
from app.own_folders import hold

FORMAT = 1
# Every column family is there from the start: a secondary that does not know one refuses to open.
HISTORIES = "histories"  # u<user> or s<session> → what is read
OWN = "own"  # u<user> → the user's own entries, where `histories` also holds merged sessions'
LINKS = "links"  # u<user> → sessions merged into it; s<session> → user, time
SEEN = "seen"  # digest of (owner, event id) → arrivals of the events that counted
ITEMS = "items"  # item id → sequence, available, columns
ITEM_LOG = "item_log"  # sequence → item id
USERS = "users"  # user id → columns
META = "meta"
FAMILIES = (HISTORIES, OWN, LINKS, SEEN, ITEMS, ITEM_LOG, USERS, META)
# Each family that readers use holds under this key the number of the last publication: a secondary may show one family
# as it was before another (`app.state.secondary`). Records begin at FIRST.
MARKED = (HISTORIES, LINKS, ITEMS, ITEM_LOG, USERS, META)
MARK, FIRST = b"", b"\0"
# Item sequences of a rebuilt database lie above all of the one before it, so that replicas take everything anew.
SEQUENCES_PER_GENERATION = 1 << 40

Changes = dict[tuple[str, bytes], bytes | None]  # (family, key) → record; None: deleted

log = logging.getLogger("manta.state")


@dataclass(frozen=True, slots=True)
class StatePaths:
    """The files of one node's state, or of one of its shards."""

    root: Path

    @classmethod
    def of(cls, home: Path) -> "StatePaths":
        return cls(home / "state")

    def shard(self, number: int) -> "StatePaths":
        """Those of a shard; below zero: the node's own."""
        return StatePaths(self.shards / str(number)) if number >= 0 else self

    @property
    def shards(self) -> Path:
        """Parent of the shards' folders, with `state.placement: sharded`."""
        return self.root / "shards"

    @property
    def databases(self) -> Path:
        """The folder whose subfolders are databases."""
        return self.root / "db"

    @property
    def position(self) -> Path:
        return self.root / "position"

    @property
    def checkpoint(self) -> Path:
        """Where a checkpoint is made, before it is copied to the artifact store."""
        return self.root / "checkpoint"

    @property
    def checkpoint_wanted(self) -> Path:
        """While this file is there, somebody waits for the writer to make a checkpoint."""
        return self.root / "checkpoint.wanted"

    @property
    def stopped(self) -> Path:
        """While this file is there, its line says why the writer does not write this database."""
        return self.root / "stopped"

    @property
    def replicas(self) -> Path:
        """Parent of the replicas' own folders."""
        return self.root / "replicas"


def database(databases: Path, generation: int) -> Path:
    """The folder of one database."""
    return databases / f"{generation:08d}"


def current_generation(databases: Path) -> int:
    """Which database is in use; 0 where none was chosen yet."""
    try:
        return int((databases / "current").read_text())
    except FileNotFoundError:
        return 0


def choose_generation(databases: Path, generation: int) -> None:
    """Points everyone to another database, atomically."""
    databases.mkdir(parents=True, exist_ok=True)
    fresh = databases / f"current.{os.getpid()}"
    fresh.write_text(str(generation))
    fresh.rename(databases / "current")


def remove_older(databases: Path, generation: int) -> None:
    """Removes the databases that were in use before this one; one that is chosen after it is nobody's yet."""
    for folder in databases.iterdir():
        if folder.is_dir() and folder.name.isdigit() and int(folder.name) < generation:
            shutil.rmtree(folder, ignore_errors=True)


def hold_for_writing(path: Path) -> IO[bytes]:
    """The right to write a database, until the file is closed or the process ends; also over its being opened anew,
    when RocksDB's own lock is free for a moment and somebody who waits for it could come in between.

    Raises:
        StateUnavailable: another writer has it.
    """
    try:
        return hold(path)
    except BlockingIOError:
        why = "lock hold by another writer"  # in RocksDB's words (`app.state.room.is_held_by_another`)
    except OSError as error:
        why = str(error)
    raise StateUnavailable(f"state database {path} cannot be opened for writing: {why}")


def open_primary(path: Path, families: Sequence[str] = FAMILIES) -> Rdict:
    """The one writer's view; fails while another process holds it."""
    path.mkdir(parents=True, exist_ok=True)
    columns = {name: database_options() for name in families}
    if SEEN in columns:  # most identities that are looked up are new: memory need not be searched for them either
        columns[SEEN].set_memtable_prefix_bloom_ratio(0.05)
        columns[SEEN].set_memtable_whole_key_filtering(True)
    return Rdict(str(path), database_options(), column_families=columns)


def close(db: Rdict, families: dict[str, Rdict], handles: dict[str, ColumnFamily]) -> None:
    """Lets go of a database: RocksDB's lock is held as long as any handle lives.

    What cannot be flushed any more (a full disk) stands in its log; the caller drops `db` all the same.
    """
    handles.clear()
    for handle in (*families.values(), db):
        try:
            handle.close()
        except Exception as error:  # rocksdict raises bare exceptions
            log.warning("a database was closed without a flush: %s", error)
    families.clear()


def forget_old_logs(path: Path) -> None:
    """Removes what RocksDB wrote about itself before it was last opened: it names the keys of compacted ranges."""
    for file in path.glob("LOG.old.*"):
        file.unlink(missing_ok=True)


def get_many(family: Rdict, keys: Sequence[bytes]) -> list[bytes | None]:
    """Values of a family; None: not there."""
    if not keys:
        return []
    found: list[bytes | None] = family.get(list(keys))
    return found


def database_options() -> Options:
    """How databases and their column families are opened."""
    options = Options(raw_mode=True)
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(10, False)  # most identities that are looked up are new
    options.set_block_based_table_factory(blocks)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(16 << 20)
    # A replica keeps what is not flushed in its own memory too.
    options.set_db_write_buffer_size(48 << 20)
    options.set_max_total_wal_size(64 << 20)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(4 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options
