"""Where imported rows come from: files on disk or in an object store, and SQL databases."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import sqlalchemy
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from app.artifacts import file_system, shown
from app.errors import MantaError, SettingsError
from app.events.import_csv import Unreadable, csv_rows

Row = dict[str, Any]
Rows: TypeAlias = pa.Table | Sequence[Row | Unreadable]
_BATCH = 20_000
_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson", ".json")


class Source(Protocol):
    """Rows by the names they have where they are."""

    @property
    def ordered(self) -> bool:
        """Whether the rows always come in the same order, so that a row's place is part of what it is."""
        ...

    def batches(self, column_map: Mapping[str, str]) -> Iterator[Rows]:
        """The rows, in pieces of bounded size.

        Args:
            column_map: name there to name here: ids keep leading zeros that a reader would take for a number's.

        Raises:
            MantaError: they cannot be read.
            SettingsError: the map names a column that is not there (JSON lines, where each row has its own, aside).
        """
        ...


def _require(column_map: Mapping[str, str], names: Sequence[str]) -> None:
    """Raises SettingsError: a column that nobody has would be silently absent from every row."""
    if absent := [name for name in column_map if name not in names]:
        raise SettingsError("manta import", "--column", absent[0], f"one of {', '.join(names)}")


@dataclass(frozen=True)
class FileSource:
    """A file, or every file of a folder that can be read, in the order of their names.

    Attributes:
        path: a path, or an address such as `s3://bucket/ratings/` or `gs://bucket/items.csv.gz`.
        filesystem: where `path` is; None: it says so itself.
    """

    path: str
    filesystem: pa.fs.FileSystem | None = None
    ordered: bool = True

    def batches(self, column_map: Mapping[str, str]) -> Iterator[Rows]:
        """As `Source.batches`."""
        try:
            filesystem, files = self._files()
            looked = False  # at the first rows that say which columns there are
            for file in files:
                for rows in _file_batches(filesystem, file, column_map):
                    if isinstance(rows, pa.Table) and not looked:
                        _require(column_map, rows.column_names)
                        looked = True
                    yield rows
        except (OSError, pa.ArrowException) as error:
            why = str(error).partition("\n")[0].replace(self.path, shown(self.path))
            raise MantaError(f"import: {shown(self.path)}: not readable: {why}") from None

    def _files(self) -> tuple[pa.fs.FileSystem, list[str]]:
        filesystem, path = (self.filesystem, self.path) if self.filesystem is not None else self._store()
        found = filesystem.get_file_info(path)
        if found.type == pa.fs.FileType.NotFound:
            raise MantaError(f"import: {shown(self.path)}: found nothing there, wanted a file or a folder")
        if found.type == pa.fs.FileType.File:
            return filesystem, [path]
        inside = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
        files = sorted(file.path for file in inside if file.type == pa.fs.FileType.File and _suffix(file.path))
        if not files:
            raise MantaError(f"import: {shown(self.path)}: found no file with rows, wanted {', '.join(_SUFFIXES)}")
        return filesystem, files

    def _store(self) -> tuple[pa.fs.FileSystem, str]:
        try:
            return file_system(self.path)
        except MantaError as error:
            raise MantaError(f"import: {error}; for a database name --table or --query too") from None


def _suffix(path: str) -> str | None:
    name = path.lower().removesuffix(".gz")
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)


def _file_batches(filesystem: pa.fs.FileSystem, path: str, column_map: Mapping[str, str]) -> Iterator[Rows]:
    match _suffix(path):
        case ".parquet":
            for batch in pa.parquet.ParquetFile(filesystem.open_input_file(path)).iter_batches(_BATCH):
                yield pa.Table.from_batches([batch])
        case ".csv":
            yield from csv_rows(lambda: filesystem.open_input_stream(path), column_map)  # unpacks by the ending
        case None:
            raise MantaError(f"import: {path}: wanted {', '.join(_SUFFIXES)}")
        case _:
            with filesystem.open_input_stream(path) as stream:
                yield from _lines(stream)


def _lines(stream: Any) -> Iterator[list[Row | Unreadable]]:
    rows: list[Row | Unreadable] = []
    for line in io.BufferedReader(stream):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            row = Unreadable("json", f"found {line[:40]!r}, wanted a JSON object")
        rows.append(row)
        if len(rows) == _BATCH:
            yield rows
            rows = []
    if rows:
        yield rows


@dataclass
class SqlSource:
    """A table or a query of a database.

    Attributes:
        address: SQLAlchemy's, such as `postgresql+psycopg://user@host/shop` or `sqlite:///shop.db`.
        table: `NAME` or `SCHEMA.NAME`; else `query`.
        since: a column that only grows from row to row: rows beyond `last` alone are read, in its order.
        last: the greatest value of `since` so far, also while reading; None: none yet.
    """

    address: str
    table: str = ""
    query: str = ""
    since: str = ""
    last: Any = None
    ordered: bool = field(default=False, init=False)

    def batches(self, column_map: Mapping[str, str]) -> Iterator[Rows]:
        """As `Source.batches`; ids are taken as the database types them."""
        try:
            engine = sqlalchemy.create_engine(self.address)
            with engine.connect() as connection:
                found = connection.execution_options(stream_results=True).execute(self._statement())
                names = list(found.keys())
                if self.since and self.since not in names:
                    raise SettingsError("manta import", "--since-column", self.since, f"one of {', '.join(names)}")
                _require(column_map, names)
                for part in found.partitions(_BATCH):
                    rows = [dict(zip(names, row, strict=True)) for row in part]
                    self._remember(rows)
                    yield rows
            engine.dispose()
        except (ArgumentError, NoSuchModuleError) as error:
            raise SettingsError("manta import", "PATH", self.shown, f"a database's address: {error}") from None
        except ImportError as error:
            raise MantaError(f"import: {self.shown}: the driver is not installed: {error}") from None
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise MantaError(f"import: {self.shown}: {reason}") from None

    @property
    def shown(self) -> str:
        """The address without its password."""
        try:
            return sqlalchemy.make_url(self.address).render_as_string(hide_password=True)
        except ArgumentError:
            return "the address"

    @property
    def place(self) -> str:
        """What tells this source from others, its password left out."""
        return json.dumps([self.shown, self.table, self.query, self.since])

    def _statement(self) -> Any:
        if self.table:
            schema, _, name = self.table.rpartition(".")
            rows: Any = sqlalchemy.table(name, schema=schema or None)
        else:
            inner = self.query.rstrip().rstrip(";").replace(":", "\\:")
            rows = sqlalchemy.text(f"({inner}) AS manta_rows")
        statement = sqlalchemy.select(sqlalchemy.text("*")).select_from(rows)
        if not self.since:
            return statement
        column: Any = sqlalchemy.column(self.since)
        if self.last is not None:
            statement = statement.where(column > self.last)
        return statement.order_by(column)

    def _remember(self, rows: list[Row]) -> None:
        for row in reversed(rows if self.since else []):
            if row[self.since] is not None:
                self.last = row[self.since]
                return


class LastValues:
    """Up to where each incremental import has come, in one file under the home.

    Args:
        file: JSON; made at the first `keep`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, source: SqlSource) -> Any:
        """The value kept for this source; None: none yet."""
        kept = self._read().get(source.place)
        if kept is None:
            return None
        return _TYPES[kept["type"]](kept["value"])

    def keep(self, source: SqlSource) -> None:
        """Keeps `source.last`, once all rows up to it are acknowledged."""
        if source.last is None:
            return
        value = source.last
        kind = type(value).__name__ if type(value).__name__ in _TYPES else "str"
        text = value.isoformat() if isinstance(value, date) else value if kind in ("int", "float") else str(value)
        kept = self._read() | {source.place: {"type": kind, "value": text}}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(kept, indent=1))
        fresh.replace(self._file)

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise MantaError(f"import: {self._file}: not readable: {error}; remove it to begin anew") from None
        return found


_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
}
