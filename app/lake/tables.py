"""The Iceberg tables: schemas, partitions, and the catalog that knows them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform, MonthTransform

from app.errors import MantaError
from app.events import decode
from app.events.columns import MICROS
from app.events.schema import EVENTS, IMPRESSIONS
from app.lake.commit import ARRIVAL_TIME
from app.lake.evolution import with_columns
from app.settings import LakeSettings, Settings

__all__ = ["ARRIVAL", "FIGURES", "FIGURE_COLUMNS", "PARTITIONED_BY", "TABLES", "Lake", "open_lake"]

FIGURES = "figures"
FIGURE_COLUMNS = pa.schema(
    [
        ("window_start", MICROS),
        ("window_end", MICROS),
        ("size", pa.string()),  # hour, day
        ("surface", pa.string()),
        ("variant", pa.string()),
        ("bundle", pa.string()),
        ("by_source", pa.bool_()),  # false: all; true: a row per source that named the items, several may name one
        ("source", pa.string()),  # null where by_source: no source is known
        ("impressions", pa.int64()),
        ("clicks", pa.int64()),
        ("conversions", pa.int64()),
    ]
)

ARRIVED = pa.field(ARRIVAL_TIME, MICROS)
# Every table and its columns: those of the topics, which ingest fills, and the figures.
TABLES: dict[str, pa.Schema] = {
    name: columns.append(ARRIVED) if name in (EVENTS, IMPRESSIONS) else columns
    for name, columns in {**decode.TABLES, FIGURES: FIGURE_COLUMNS}.items()
}

# The column by which rows came, for all tables but those named.
ARRIVAL = {FIGURES: "window_start"}

# Tables that grow, and the time that they are partitioned by.
PARTITIONED_BY = {EVENTS: "event_time", IMPRESSIONS: "time"}

_PROPERTIES = {
    # pyiceberg would repeat a lost commit by itself, and so append the same rows twice
    "commit.retry.num-retries": "0",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "write.parquet.compression-codec": "zstd",
}


@dataclass(frozen=True, slots=True)
class Lake:
    """The tables of one warehouse. `settings` is `settings.lake`."""

    catalog: Catalog
    settings: LakeSettings

    def table(self, name: str) -> Table:
        """The table as it stands now; made if missing, with the columns that came with later versions of Manta.

        Raises:
            MantaError: no such table, or it stands with another partition than the settings name.
        """
        if name not in TABLES:
            raise MantaError(f"lake: table {name!r}: wanted one of {', '.join(TABLES)}")
        identifier = (self.settings.namespace, name)
        try:
            table = self.catalog.load_table(identifier)
        except NoSuchTableError:
            self._create(identifier)
            table = self.catalog.load_table(identifier)
        self._same_partition(name, table)
        return with_columns(table, TABLES[name])

    def _same_partition(self, name: str, table: Table) -> None:
        found = {str(part.transform) for part in table.spec().fields}
        if name in PARTITIONED_BY and found != {self.settings.partition}:
            raise MantaError(
                f"lake.partition: found table {name} partitioned by {', '.join(sorted(found)) or 'nothing'}, wanted "
                f"{self.settings.partition}: set lake.partition to what it was, or name another lake.namespace"
            )

    def exists(self, name: str) -> bool:
        """Whether the table has been made yet."""
        return bool(self.catalog.table_exists((self.settings.namespace, name)))

    def _create(self, identifier: tuple[str, str]) -> None:
        with suppress(NamespaceAlreadyExistsError):
            self.catalog.create_namespace(self.settings.namespace)
        name = identifier[1]
        try:
            # Spec 0 stays without a partition, for stragglers; the table's own spec follows in the same transaction
            with self.catalog.create_table_transaction(identifier, TABLES[name], properties=_PROPERTIES) as transaction:
                if name in PARTITIONED_BY:
                    transform = MonthTransform() if self.settings.partition == "month" else DayTransform()
                    with transaction.update_spec() as spec:
                        spec.add_field(PARTITIONED_BY[name], transform, f"{PARTITIONED_BY[name]}_part")
        except TableAlreadyExistsError:
            pass  # another process was first


def open_lake(settings: Settings, home: Path) -> Lake:
    """The lake of a home: sqlite catalog and warehouse under `home/lake`, unless the settings name others."""
    lake = settings.lake
    folder = home / "lake"
    properties: dict[str, Any] = dict(lake.catalog)
    if not properties:
        folder.mkdir(parents=True, exist_ok=True)
        properties = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db?timeout=60"}
    properties.setdefault("warehouse", lake.warehouse or f"file://{folder}")
    return Lake(load_catalog("manta", **properties), lake)
