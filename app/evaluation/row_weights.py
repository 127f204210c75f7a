"""What the rows of a folder weigh as events: by the weights of the settings, their `event_type` and their `value`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.errors import MantaError
from app.event_weights import EventWeights
from app.weighing import NOT_IN_HISTORY, Weighed, weigh

EVENT_TYPE, VALUE = "event_type", "value"


@dataclass(frozen=True, slots=True)
class RowWeights:
    """How rows are weighed.

    Attributes:
        weights: by event type.
        gap_s: the longest silence within a session, seconds.
        kind: the type of rows that name none.
    """

    weights: EventWeights
    gap_s: float
    kind: str

    def with_columns(self, rows: pa.Table, table: pa.Table, path: Path) -> pa.Table:
        """Rows with `event_type` (string) and `value` (float64, null: none), without those that are in no history.

        Args:
            rows: as they are read without weights.
            table: the whole file, row by row the same.
            path: where it lies.

        Raises:
            MantaError: a column is of another type, a value is infinite, or a dwell time is missing where no time is.
        """
        n = len(table)
        kinds = pa.chunked_array([pa.nulls(n, pa.string())])
        values = pa.chunked_array([pa.nulls(n, pa.float64())])
        if EVENT_TYPE in table.column_names:
            kinds = _cast(table, EVENT_TYPE, pa.string(), path)
        if VALUE in table.column_names:
            values = _cast(table, VALUE, pa.float64(), path)
            if pc.any(pc.is_inf(values)).as_py():
                raise MantaError(f"{path}: {VALUE}: found infinity, wanted finite numbers")
        kinds = pc.fill_null(kinds, self.kind)
        if "timestamp" not in table.column_names:
            dwell = pa.array([kind for kind, one in self.weights.items() if one.of_dwell], pa.string())
            if pc.any(pc.and_(pc.is_in(kinds, dwell), pc.is_null(values, nan_is_null=True))).as_py():
                raise MantaError(f"{path}: found a dwell time missing and no timestamp, wanted one of the two")
        stands = pc.invert(pc.is_in(kinds, pa.array(sorted(NOT_IN_HISTORY))))
        return rows.append_column(EVENT_TYPE, kinds).append_column(VALUE, values).filter(stands)

    def of(self, rows: pa.Table, owners: NDArray[np.int64]) -> Weighed:
        """Weights of rows with these columns and `timestamp` (milliseconds), in the order of time."""
        kinds = rows[EVENT_TYPE].combine_chunks().dictionary_encode()
        values = np.asarray(pc.fill_null(rows[VALUE], np.nan), np.float64)
        codes, names = np.asarray(kinds.indices, np.int64), kinds.dictionary.to_pylist()
        times = np.asarray(rows["timestamp"], np.int64)
        return weigh(self.weights, names, codes, values, owners, times, self.gap_s)


def _cast(table: pa.Table, name: str, kind: pa.DataType, path: Path) -> pa.ChunkedArray:
    found = table[name].type
    fits = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_null(found)
    if pa.types.is_string(kind):
        fits = not fits or pa.types.is_null(found)
    try:
        if fits:
            return table[name].cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    raise MantaError(f"{path}: {name}: found {found}, wanted {'text' if pa.types.is_string(kind) else 'a number'}")
