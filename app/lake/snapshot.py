"""Reading one snapshot of a table: the same rows however often, whatever is committed meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThan
from pyiceberg.table import DataScan, Table

from app.lake.commit import Progress, progress_of
from app.lake.scan import pieces
from app.lake.tables import PARTITIONED_BY, TABLES, Lake


@dataclass(frozen=True, slots=True)
class FilePart:
    """A Parquet file of a snapshot; every row of it belongs to the snapshot."""

    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One table as of one commit.

    Attributes:
        table: its name.
        id: Iceberg's snapshot id; None: nothing was ever committed.
        progress: offsets up to which its rows go.
        source: pyiceberg's table.
    """

    table: str
    id: int | None
    progress: Progress
    source: Table

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(part.rows for part in self.files())

    def read(
        self, columns: Sequence[str] | None = None, *, start_us: int | None = None, end_us: int | None = None
    ) -> pa.Table:
        """The rows, in no particular order.

        Args:
            columns: which; None: all, with the types of `tables.TABLES`.
            start_us: least time (`tables.PARTITIONED_BY`), microseconds since 1970, inclusive.
            end_us: time to stop before.
        """
        schema = TABLES[self.table]
        names = list(columns) if columns is not None else schema.names
        wanted = pa.schema([schema.field(name) for name in names])
        if self.id is None:
            return wanted.empty_table()
        scan = self._scan(("*",), start_us, end_us)
        held = set(scan.projection().column_names)
        found = self._scan(tuple(name for name in names if name in held), start_us, end_us).to_arrow()
        for name in names:  # a snapshot from before a column was added does not know of it
            if name not in held:
                found = found.append_column(name, pa.nulls(len(found), schema.field(name).type))
        return found.select(names).cast(wanted)

    def files(self, *, start_us: int | None = None, end_us: int | None = None) -> list[FilePart]:
        """Its Parquet files, for `ray.data.read_parquet` and others; a time range leaves out files without a match."""
        if self.id is None:
            return []
        tasks = self._scan(("*",), start_us, end_us).plan_files()
        return [FilePart(t.file.file_path, t.file.record_count, t.file.file_size_in_bytes) for t in tasks]

    def _scan(self, names: tuple[str, ...], start_us: int | None, end_us: int | None) -> DataScan:
        condition: BooleanExpression = AlwaysTrue()
        if start_us is not None:
            condition = And(condition, GreaterThanOrEqual(PARTITIONED_BY[self.table], _iso(start_us)))
        if end_us is not None:
            condition = And(condition, LessThan(PARTITIONED_BY[self.table], _iso(end_us)))
        current = self.source.current_snapshot()
        newest = current is not None and current.snapshot_id == self.id
        # Read by its id a snapshot has the columns that the table had then; the newest one has today's
        return self.source.scan(row_filter=condition, selected_fields=names, snapshot_id=None if newest else self.id)


def snapshot(lake: Lake, table: str) -> Snapshot:
    """The table's current snapshot.

    Raises:
        MantaError: no such table.
    """
    return snapshot_of(table, lake.table(table))


def snapshot_of(table: str, source: Table) -> Snapshot:
    """The snapshot that a loaded table stands at."""
    current = source.current_snapshot()
    return Snapshot(table, current.snapshot_id if current else None, progress_of(source), source)


def export(lake: Lake, folder: Path) -> dict[str, int]:
    """Writes `folder/TABLE/*.parquet` for every table (an empty one has one file without rows), a few files at a time.

    Returns:
        Table to its number of rows.
    """
    written = {}
    for name in TABLES:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("part-*.parquet"):
            old.unlink()
        written[name] = 0
        with pq.ParquetWriter(target / "part-00000.parquet", TABLES[name], compression="zstd") as writer:
            for rows in pieces(lake.table(name).scan()):
                writer.write_table(rows.select(TABLES[name].names).cast(TABLES[name]))
                written[name] += len(rows)
    return written


def _iso(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat()
