"""Rows of somebody who was erased: which they are, and which data files hold them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.expressions import BooleanExpression, EqualTo, In, Or

from app.erasure.erased import Mask
from app.erasure.places import Subject
from app.lake.tables import TABLES

_OWNERS = ("user_id", "session_id")
_PLACE = ("partition", "offset", "record_time")


class Doomed:
    """The rows of one table that an erasure takes out.

    Args:
        subject: whose.
        name: of the table, which has `user_id`.
    """

    def __init__(self, subject: Subject, name: str) -> None:
        self._subject, self._name = subject, name
        columns = TABLES[name].names
        self._ids: dict[str, tuple[str, ...]] = {"user_id": (subject.user_id,)}
        if "session_id" in columns and subject.sessions:
            self._ids["session_id"] = subject.sessions
        # Of the latest versions of users also the one that says that there is none: it names the user.
        self._read = [one for one in (*_OWNERS, *_PLACE, "available") if one in columns]

    @property
    def condition(self) -> BooleanExpression:
        """What Iceberg's column bounds are asked; it also finds rows that stay."""
        (user,) = self._ids["user_id"]
        mine: BooleanExpression = EqualTo("user_id", user)
        sessions = self._ids.get("session_id")
        return Or(mine, In("session_id", sessions)) if sessions else mine

    def mask(self, rows: pa.Table) -> Mask:
        """bool (n,): the rows that go."""
        found = self._subject.rows(self._name, rows)
        if "available" in rows.column_names and len(rows):
            found |= self._subject.owns(rows) & ~np.asarray(rows["available"])
        return found

    def without(self, rows: pa.Table) -> pa.Table:
        """The rows that stay."""
        gone = self.mask(rows)
        return rows.filter(pa.array(~gone)) if gone.any() else rows

    def count(self, file: pa.NativeFile) -> int:
        """How many rows of a Parquet file go; reads the columns with ids of row groups whose bounds name them.

        Raises:
            pyarrow.ArrowInvalid: it is no whole Parquet file.
        """
        with pq.ParquetFile(file) as parquet:
            return sum(int(self.mask(rows).sum()) for rows in self._suspects(parquet))

    def _suspects(self, parquet: pq.ParquetFile) -> Iterator[pa.Table]:
        """What must be looked at of the row groups that hold one of the ids."""
        metadata = parquet.metadata
        places = {metadata.schema.column(place).path: place for place in range(len(metadata.schema))}
        owners = [name for name in _OWNERS if name in places]
        for group in range(metadata.num_row_groups):
            chunks = metadata.row_group(group)
            if not any(self._may(name, chunks.column(places[name])) for name in owners):
                continue
            ids = parquet.read_row_group(group, columns=owners)
            if any(_has(ids[name], self._ids.get(name, ())) for name in owners):
                yield parquet.read_row_group(group, columns=self._read)

    def _may(self, name: str, chunk: Any) -> bool:
        """Whether a column chunk's bounds leave room for one of the ids."""
        wanted = self._ids.get(name, ())
        found = chunk.statistics
        if found is None or not found.has_min_max:
            return bool(wanted) and not (found is not None and found.has_null_count and not found.num_values)
        return any(found.min <= one <= found.max for one in wanted)


def _has(column: pa.ChunkedArray, ids: tuple[str, ...]) -> bool:
    return bool(ids) and bool(pc.any(pc.is_in(column, pa.array(ids, pa.string()))).as_py())
