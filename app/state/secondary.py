"""A reader's own view of a RocksDB database that another process writes: complete up to when a catch-up began."""

import time
from collections.abc import Sequence
from pathlib import Path

from rocksdict import AccessType, Rdict

from app.errors import StateUnavailable
from app.state import layout

_LIMIT_S = 2.0  # a busy writer edits its manifest some ten times a second, a catch-up takes a millisecond


class Secondary:
    """One opened secondary. One thread catches up at a time; any may read meanwhile.

    RocksDB reads the manifest first and the logs after it. What stood in a log that the writer flushed and removed in
    between is in neither, while newer logs are read: later writes show without earlier ones, and without an error,
    until the next catch-up. The same goes for a table that was merged away before it could be opened. The writer
    removes a file only after an edit of the manifest, so a catch-up counts where the manifest stayed as it was.

    What it cannot see to: records that were flushed before they were caught up with stay hidden behind older ones of
    the same family in the secondary's memory, until the family is written to again. Opening anew shows them.
    """

    def __init__(self, path: Path, own_path: Path, families: Sequence[str] = layout.FAMILIES) -> None:
        """Takes the database, a folder for this reader alone, and the database's column families.

        Raises:
            StateUnavailable: there is no database.
            Exception: RocksDB's, whose class is bare.
        """
        if not (path / "CURRENT").exists():  # RocksDB would make the folder
            raise StateUnavailable(f"there is no database in {path}")
        own_path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._caught: tuple[str, int] | None = None  # the manifest of the last catch-up
        access = AccessType.secondary(str(own_path))
        options = layout.database_options()
        options.set_max_open_files(-1)  # files that the writer deletes must stay open here
        # More threads than one are started and ended per column family at every catch-up: 3 ms instead of 0.04.
        options.set_max_file_opening_threads(1)
        columns = {name: layout.database_options() for name in families}
        self._db = Rdict(str(path), options, column_families=columns, access_type=access)
        self.families: dict[str, Rdict] = {name: self._db.get_column_family(name) for name in families}

    def catch_up(self) -> bool:
        """Makes all visible that was written before the call, but for what was flushed; whether anything was flushed or
        merged since the call before (False the first time).

        Raises:
            StateUnavailable: the writer flushes and merges faster than its files are read.
            Exception: RocksDB's, whose class is bare.
        """
        now, limit = self._manifest(), time.monotonic() + _LIMIT_S
        while time.monotonic() < limit:
            self._db.try_catch_up_with_primary()
            before, now = now, self._manifest()
            if before == now:
                edited, self._caught = self._caught not in (None, now), now
                return edited
        raise StateUnavailable(f"the manifest of {self._path} changed in every catch-up of {_LIMIT_S:g} s")

    def _manifest(self) -> tuple[str, int]:
        """Which it is, and its size, bytes."""
        try:
            name = (self._path / "CURRENT").read_text()
            return name, (self._path / name.strip()).stat().st_size
        except FileNotFoundError:  # a new one, this moment; or all has gone, and what is open can still be read
            return "", 0
