"""The table `figures`: hours and days of impressions, clicks and conversions, each written once, when it is final."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException

from app.errors import MantaError
from app.events.columns import MICROS
from app.lake.commit import LOST_COMMITS, append, progress_of
from app.lake.tables import FIGURES, Lake

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinalWindows:
    """Windows that do not change any more.

    Attributes:
        rows: `tables.FIGURE_COLUMNS`: of each size every window that ends at or before `upto` and may not be kept yet.
        upto: size → microseconds since 1970.
    """

    rows: pa.Table
    upto: Mapping[str, int]


def keep(lake: Lake, windows: FinalWindows) -> int:
    """Appends the windows that are not in the table yet; how many rows those were.

    Each snapshot says up to which time each size is there (`Progress.final`), in the commit that brings the rows: what
    was appended by a writer that was killed behind the commit, or by that of another node, is not appended again.

    Raises:
        MantaError: another writer was first too many times.
    """
    for _ in range(LOST_COMMITS):
        table = lake.table(FIGURES)
        progress = progress_of(table)
        rows = _since(windows.rows, progress.final)
        if not len(rows):
            return 0
        target = progress.closed({size: windows.upto[size] for size in pc.unique(rows["size"]).to_pylist()})
        try:
            append(table, rows, target, max_open_partitions=1)
        except CommitFailedException:
            log.info("figures: another commit was first; looking again")
            continue
        return len(rows)
    raise MantaError(f"lake: figures: found another commit first {LOST_COMMITS} times, wanted to be first once")


def _since(rows: pa.Table, final: Mapping[str, int]) -> pa.Table:
    """Without the windows that are there."""
    for size, upto in final.items():
        there = pc.and_(pc.equal(rows["size"], size), pc.less(rows["window_start"], pa.scalar(upto, MICROS)))
        rows = rows.filter(pc.invert(there))
    return rows
