"""The database of the registry and of the ledger of erasures: how it is opened, and what a transaction is.

Every change is one transaction whose first statement writes (so that sqlite takes its lock at once, and other
databases their row locks): of two writers one wins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.schema import CreateTable

from app.errors import RegistryUnavailable
from app.settings import Settings


def database_url(settings: Settings, home: Path) -> str:
    """The address that the settings name (`registry.url`), else sqlite under the home."""
    return settings.registry.url or f"sqlite:///{home / 'registry.db'}"


class Database:
    """Some tables of a database; safe to share among threads, and one per process.

    Raises (every method):
        RegistryUnavailable: the database does not answer.
    """

    def __init__(self, url: str, tables: sa.MetaData) -> None:
        """Opens it and makes the tables that are missing."""
        self.url = url
        address = sa.make_url(url)
        self.sqlite = address.get_backend_name() == "sqlite"
        if self.sqlite and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"connect_args": {"timeout": 30.0}} if self.sqlite else {"pool_pre_ping": True}
        self._engine = sa.create_engine(address, **options)
        if self.sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
        with self.transaction() as connection:
            for table in tables.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What a query finds."""
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(query).all())
        except DatabaseError as error:
            raise self._unreachable(error) from None

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All of it or nothing; IntegrityError comes through."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except DatabaseError as error:
            raise self._unreachable(error) from None

    def truncate_log(self) -> bool:
        """Empties sqlite's write-ahead log, which holds what was overwritten; False: others are reading, try again.

        Other databases look after theirs.
        """
        if not self.sqlite:
            return True
        try:
            with self._engine.connect() as connection:
                busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        except DatabaseError as error:
            raise self._unreachable(error) from None
        return not busy

    def _unreachable(self, error: DatabaseError) -> RegistryUnavailable:
        shown = sa.make_url(self.url).render_as_string(hide_password=True)
        return RegistryUnavailable(f"registry {shown}: {error.orig}; wanted a database that answers (registry.url)")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Readers never wait for a writer (WAL), writers wait for each other instead of failing; deleted bytes are gone."""
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")
