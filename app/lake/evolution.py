"""Tables of lakes made by an older Manta: columns that were added since are added to them."""

import logging
from collections.abc import Iterator

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

log = logging.getLogger(__name__)
_TRIES = 5


def with_columns(table: Table, wanted: pa.Schema) -> Table:
    """The table with every column of `wanted`, also those inside lists and structs; rows from before have none there.

    Columns are only added: what else differs stays as it is in the table.

    Raises:
        CommitFailedException: others were first every time.
    """
    for left in reversed(range(_TRIES)):
        missing = set(_paths(wanted)) - set(table.schema().column_names)
        if not missing:
            return table
        try:
            with table.update_schema() as update:
                update.union_by_name(wanted)
        except CommitFailedException:  # of another that adds them, or of an ingest
            if not left:
                raise
            table.refresh()
        else:
            log.info("lake: table %s: columns added: %s", table.name()[-1], ", ".join(sorted(missing)))
    return table


def _paths(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[str]:
    """Names as Iceberg has them: `items`, `items.element`, `items.element.item_id`."""
    for field in fields:
        yield from _within(field.type, prefix + field.name)


def _within(kind: pa.DataType, path: str) -> Iterator[str]:
    yield path
    if pa.types.is_list(kind):
        yield from _within(kind.value_type, f"{path}.element")
    elif pa.types.is_struct(kind):
        yield from _paths(kind, f"{path}.")
