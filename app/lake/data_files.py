"""Data files made of others: the rows of some files in one new one, all of them or those that are kept."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, ParquetFormatWriter, schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.table import FileScanTask, Table

_GROUP_ROWS = 200_000  # rows of a row group: narrow bounds of arrival, and bounded memory

# The rows of a piece that the new file gets.
Keep = Callable[[pa.Table], pa.Table]


def one_file(table: Table, sources: Sequence[FileScanTask], keep: Keep | None = None) -> DataFile:
    """One Parquet file with the rows of all; at most one source and one row group are in memory.

    Nothing refers to it before a commit does. It may hold no row, where none was kept.

    Args:
        table: theirs.
        sources: files of one partition, with one partition spec.
        keep: leaves out rows; None: all stay.

    Raises:
        FileNotFoundError: a source is gone; nothing is left behind.
    """
    spec, schema = table.specs()[sources[0].file.spec_id], table.schema()
    partition = sources[0].file.partition
    key = None
    if len(partition):
        values = [PartitionFieldValue(one, partition[place]) for place, one in enumerate(spec.fields)]
        key = PartitionKey(values, spec, schema)
    path = table.location_provider().new_data_location(f"00000-0-{uuid.uuid4()}.parquet", key)
    output = table.io.new_output(path)
    writer = ParquetFormatWriter(output, schema, table.metadata.properties)
    try:
        with writer:
            for rows in _row_groups(table, sources, keep):
                writer.write(rows)
    except Exception:
        with suppress(FileNotFoundError):
            table.io.delete(path)
        raise
    made = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=partition,
        file_size_in_bytes=len(output),
        sort_order_id=None,
        equality_ids=None,
        key_metadata=None,
        **writer.result().to_serialized_dict(),
    )
    made.spec_id = spec.spec_id
    return made


def _row_groups(table: Table, sources: Sequence[FileScanTask], keep: Keep | None) -> Iterator[pa.Table]:
    """The rows of the files, one after the other, in the columns and types of the table."""
    schema = schema_to_pyarrow(table.schema(), include_field_ids=True)
    scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
    waiting = [schema.empty_table()]
    begun = False
    for task in sources:
        for batch in scan.to_record_batches([task]):
            rows = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            waiting.append(rows if keep is None else keep(rows))
            if sum(map(len, waiting)) >= _GROUP_ROWS:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, begun = [schema.empty_table()], True
    if not begun or any(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()
