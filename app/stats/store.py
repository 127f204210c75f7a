"""The live figures in RocksDB: the writer's side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rocksdict import Rdict, WriteBatch

from app.errors import StateUnavailable
from app.state.layout import close, get_many, open_primary
from app.stats.held import FAMILIES, Changes


class StatsPaths:
    """Where a node's figures lie under a MANTA_HOME."""

    def __init__(self, home: Path) -> None:
        self.root = home / "stats"
        self.database = self.root / "db"
        self.replicas = self.root / "replicas"


class RocksHeld:
    """A `app.stats.held.Held` that has the only right to write a database."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it.

        Raises:
            StateUnavailable: another process writes it.
        """
        try:
            self._db: Rdict = open_primary(path, FAMILIES)
        except Exception as error:  # rocksdict raises bare exceptions
            raise StateUnavailable(f"figures {path} cannot be opened for writing: {error}") from None
        self._families = {name: self._db.get_column_family(name) for name in FAMILIES}
        self._handles = {name: self._db.get_column_family_handle(name) for name in FAMILIES}

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value a key; None: not there."""
        return get_many(self._families[family], keys)

    def scan(self, family: str, first: bytes, below: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As `Held.scan`."""
        return scan(self._families[family], first, below)

    def write(self, changes: Changes) -> None:
        """As `Held.write`: one write batch."""
        batch = WriteBatch(raw_mode=True)
        for family, pairs in changes.items():
            handle = self._handles[family]
            for key, value in pairs.items():
                if value is None:
                    batch.delete(key, handle)
                else:
                    batch.put(key, value, handle)
        self._db.write(batch)

    def close(self) -> None:
        """Lets go of the database: RocksDB's lock is held as long as any handle lives."""
        close(self._db, self._families, self._handles)
        del self._db


def scan(family: Rdict, first: bytes, below: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of a family with `first` <= key < `below`."""
    for key, value in family.items(from_key=first):
        if key >= below:
            return
        yield key, value
