"""The rows of a scan in pieces, of a few files at a time however slowly they are taken.

pyiceberg's own reader of batches opens every file at once: a consumer slower than it holds the whole table in memory.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
from pyiceberg.table import DataScan, FileScanTask

_AHEAD = 2  # files that are read while the rows of another are taken


def pieces(scan: DataScan) -> Iterator[pa.Table]:
    """Its rows, file by file in the order of the plan: tables of the scan's columns, none of them empty."""
    wanted = scan.projection()
    schema = schema_to_pyarrow(wanted, include_field_ids=False)
    reader = ArrowScan(scan.table_metadata, scan.io, wanted, scan.row_filter, scan.case_sensitive, scan.limit)

    def read(task: FileScanTask) -> list[pa.Table]:
        batches = reader.to_record_batches([task])
        return [pa.Table.from_batches([batch]).select(schema.names).cast(schema) for batch in batches if len(batch)]

    pool = ThreadPoolExecutor(_AHEAD, "lake-scan")
    waiting: deque[Future[list[pa.Table]]] = deque()
    try:
        for task in scan.plan_files():
            waiting.append(pool.submit(read, task))
            if len(waiting) > _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
