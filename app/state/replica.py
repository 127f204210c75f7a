"""RocksDB, a reader's side: a secondary that follows the writer, lookups in process."""

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import orjson
from rocksdict import Rdict

from app.errors import StateUnavailable
from app.own_folders import hold
from app.state import layout
from app.state.batch import session_key, user_key
from app.state.history import read
from app.state.items import item_change
from app.state.joining import Found, look
from app.state.merging import Link
from app.state.position import Position
from app.state.reader import ItemChange, Kind, UserHistory
from app.state.room import Shortage
from app.state.secondary import Secondary
from app.state.shares import WHOLE, Share

_PAUSES_S = (0.001, 0.01, 0.05)


class _View:
    """One opened secondary: its families, and how far it is."""

    def __init__(self, database: Path, own_path: Path, opened: tuple[int, int]) -> None:
        self.opened, self.own_path = opened, own_path
        secondary = Secondary(database, own_path)
        self._catch_up, families = secondary.catch_up, secondary.families
        self._families = [families[name] for name in layout.MARKED]
        self.histories, self.links = families[layout.HISTORIES], families[layout.LINKS]
        self.items, self.item_log = families[layout.ITEMS], families[layout.ITEM_LOG]
        self.users, self.meta = families[layout.USERS], families[layout.META]

    def moves_from(self, wanted: int) -> int:
        """Catches up, a moment later again where less than `wanted` shows; the last publication in every family."""
        for pause in _PAUSES_S:
            self._catch_up()
            found = min(int.from_bytes(family.get(layout.MARK, b"\0"), "little") for family in self._families)
            if found >= wanted:
                break
            time.sleep(pause)
        return found

    def share(self) -> Share:
        """What the database holds."""
        return Share.of_saved(orjson.loads(self.meta.get(b"state", b"{}")).get("share"))


class StateReplica:
    """A `StateReader` over the node's database. Every method may be called from any thread.

    Nothing needs to be there when it is made: until the first `catch_up` that succeeds, `behind()` is True and
    reads raise StateUnavailable.
    """

    def __init__(self, db_path: Path, secondary_path: Path, position_path: Path, share: Share = WHOLE) -> None:
        """Takes the folder of the databases (`state/db`), a folder for this replica alone, and the position's file.

        `share`: what the database must hold.
        """
        self._share = share
        self._databases, self._own_path, self._position_path = db_path, secondary_path, position_path
        self._catching = threading.Lock()
        self._position: Position | None = None
        self._view: _View | None = None
        self._caught = -1
        self._opened = 0
        self._mark: IO[bytes] | None = None

    @classmethod
    def of_home(cls, home: Path, name: str, share: Share = WHOLE) -> "StateReplica":
        """The replica `name` of the node's state under a MANTA_HOME, or of a share of it."""
        paths = layout.StatePaths.of(home).shard(share.shard)
        return cls(paths.databases, paths.replicas / name, paths.position, share)

    # --- following

    def behind(self) -> bool:
        """Whether the writer has moved since the last catch-up; a memory read."""
        position = self._position
        return position is None or position.moves != self._caught or position.is_replaced()

    def catch_up(self) -> None:
        """Makes everything up to the shared position visible, in any thread, while others read.

        Raises:
            StateUnavailable: the database or the position cannot be read, or what the position promises is not there.
        """
        with self._catching:
            position = self._mapped()
            wanted, opened = position.moves, position.opened
            if wanted == 0:
                raise StateUnavailable(f"the state writer has published nothing in {self._position_path} yet")
            try:
                self._follow(wanted, opened)
            except StateUnavailable:
                raise
            except Exception as error:  # rocksdict raises bare exceptions
                raise StateUnavailable(f"state database {self._databases} cannot be followed: {error}") from None
            self._caught = wanted

    def _mapped(self) -> Position:
        if self._position is None or self._position.is_replaced():
            self._position = Position.open(self._position_path)
        return self._position

    def _follow(self, wanted: int, opened: tuple[int, int]) -> None:
        before, found = self._view, -1
        if before is not None and before.opened == opened:
            found = before.moves_from(wanted)
        if found < wanted:
            # What another writer has opened; or RocksDB's secondary hides what was flushed behind older records of its
            # own memory, until something else is written.
            view = self._open(opened)
            try:
                found = view.moves_from(wanted)
                if found < wanted:  # also where the files have gone: RocksDB reports success there
                    raise StateUnavailable(
                        f"state database {self._databases}: found publication {found}, wanted {wanted} or later"
                    )
            except Exception:  # rocksdict raises bare exceptions
                shutil.rmtree(view.own_path, ignore_errors=True)
                raise
            self._view = view
            if before is not None:  # its readers in flight hold it still
                shutil.rmtree(before.own_path, ignore_errors=True)

    def _open(self, opened: tuple[int, int]) -> _View:
        generation, _ = opened
        self._opened += 1
        if self._mark is None:
            self._mark = hold(self._own_path)
        own_path = self._own_path / f"{generation:08d}-{self._opened}"
        database = layout.database(self._databases, generation)
        try:
            view = _View(database, own_path, opened)
            self._share.require(view.share(), database)
            return view
        except Exception:  # rocksdict raises bare exceptions
            shutil.rmtree(own_path, ignore_errors=True)
            raise

    def close(self) -> None:
        """Gives up the secondary and its folder."""
        with self._catching:
            self._view = None
            self._caught = -1
            shutil.rmtree(self._own_path, ignore_errors=True)
            if self._mark is not None:
                self._mark.close()
                self._mark = None

    # --- reading

    def _opened_view(self) -> _View:
        view = self._view
        if view is None:
            raise StateUnavailable("the state was not opened yet: no catch-up has succeeded")
        return view

    def histories(self, keys: Sequence[tuple[Kind, str]]) -> list[UserHistory]:
        """One history a key; unknown: EMPTY_HISTORY."""
        names = [user_key(name) if kind == "user" else session_key(name) for kind, name in keys]
        since = self._position.since if self._position else None
        return [read(record, since) for record in self._get(self._opened_view().histories, names)]

    def look(self, keys: Sequence[bytes]) -> list[Found]:
        """What a shard has of users and sessions (`app.state.joining`)."""
        view = self._opened_view()
        try:
            return look(view.histories, view.links, keys)
        except Exception as error:  # rocksdict raises bare exceptions
            raise StateUnavailable(f"the state cannot be read: {error}") from None

    def user_columns(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Columns of each user; None: unknown."""
        records = self._get(self._opened_view().users, [user_id.encode() for user_id in user_ids])
        return [orjson.loads(record) if record is not None else None for record in records]

    def item(self, item_id: str) -> ItemChange | None:
        record = self._opened_view().items.get(item_id.encode())
        return item_change(item_id, record) if record is not None else None

    def item_changes(self, after: int) -> list[ItemChange]:
        """The last change of each item with a sequence above `after`, oldest first."""
        view = self._opened_view()
        if self._position is not None and after >= self._position.item_sequence:
            return []
        keys = list(view.item_log.values(from_key=(after + 1).to_bytes(8, "big")))
        changes = [
            item_change(key.decode(), record)
            for key, record in zip(keys, self._get(view.items, keys), strict=True)
            if record is not None
        ]
        return sorted((change for change in changes if change.sequence > after), key=lambda change: change.sequence)

    def item_sequence(self) -> int:
        """Sequence of the newest item change, from the shared position."""
        return self._position.item_sequence if self._position else 0

    def merged_into(self, session_id: str) -> str | None:
        """The user whom a session was merged into; None: it was not."""
        link = Link.of(self._opened_view().links.get(session_key(session_id)))
        return link.user_id if link else None

    def applied(self, topic: str, partition: int) -> int:
        """Next offset of the partition that is not applied, from the shared position; 0: nothing is."""
        return self._position.applied(topic, partition) if self._position else 0

    def offsets(self, topic: str) -> dict[int, int]:
        """Partition → next offset that is not applied, where anything is; from the shared position."""
        return self._position.offsets()[topic] if self._position else {}

    def as_of(self) -> int:
        """The watermark, milliseconds; 0 without events."""
        return self._position.watermark if self._position else 0

    def since(self) -> int | None:
        """Earliest event time that counts as of the watermark, milliseconds; None: all count."""
        return self._position.since if self._position else None

    def lag(self) -> int:
        """Messages in the log that the writer has not applied, as of the last second; -1: it cannot tell."""
        return self._position.lag if self._position else -1

    def jumped(self) -> int:
        """Offsets that the log did not hold any more when the state needed them, as of the last second."""
        return self._position.jumped if self._position else 0

    def shortage(self) -> Shortage | None:
        """Why the writer applies nothing; None: it does, or none was ever seen."""
        return self._position.shortage if self._position else None

    def stopped(self) -> str | None:
        """Why the database is not written, in one line; None: it is, as far as the disk says."""
        try:
            return self._position_path.with_name("stopped").read_text()
        except OSError:
            return None

    def disk(self) -> tuple[int, int]:
        """(bytes free, bytes of the state) on the node's disk, as of the last seconds."""
        return (self._position.free_bytes, self._position.used_bytes) if self._position else (0, 0)

    def writer_seen_ms(self) -> int:
        """When the writer was last alive, milliseconds since 1970; 0: never seen."""
        return self._position.heartbeat_ms if self._position else 0

    @staticmethod
    def _get(family: Rdict, keys: list[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        try:
            found: list[bytes | None] = family.get(keys)
        except Exception as error:  # rocksdict raises bare exceptions
            raise StateUnavailable(f"the state cannot be read: {error}") from None
        return found
