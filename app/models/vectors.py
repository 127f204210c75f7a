"""Item columns that are vectors (a picture's or a text's embedding): what counts as one, and how it becomes numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LEAST = 2  # numbers of a vector
AT_ONCE = 10_000  # rows that are numbers of 64 bits at a time


def is_numbers(kind: pa.DataType) -> bool:
    """Whether a column is one of lists of numbers."""
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def vector_size(column: pa.ChunkedArray) -> int:
    """How many numbers the vectors of a column have; 0: it holds no vectors.

    It holds vectors if more than half of its lists that are not empty have one length, at least LEAST; the others count
    as missing.
    """
    if not is_numbers(column.type):
        return 0
    lengths = pc.list_value_length(column)
    counts = pc.value_counts(lengths.filter(pc.greater(lengths, 0))).to_pylist()
    commonest = max(counts, key=lambda entry: entry["counts"], default={"values": 0, "counts": 0})
    most = 2 * commonest["counts"] > sum(entry["counts"] for entry in counts)
    return int(commonest["values"]) if most and commonest["values"] >= LEAST else 0


def unit_vectors(values: Sequence[Any] | pa.ChunkedArray, size: int) -> NDArray[np.float32]:
    """float32 (n, size), rows of unit length; zeros for a null, another size, or an entry that is no finite number."""
    found = np.zeros((len(values), size), np.float32)
    for start in range(0, len(values), AT_ONCE):
        some = values[start : start + AT_ONCE]
        rows, numbers = _of_column(some, size) if isinstance(some, pa.ChunkedArray) else _of_values(some, size)
        known = np.isfinite(numbers).all(axis=1) & (np.abs(numbers).max(axis=1, initial=0.0) > 0)
        numbers = numbers[known] / np.abs(numbers[known]).max(axis=1, keepdims=True, initial=0.0)  # none is too large
        numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
        found[start + rows[known]] = numbers
    return found


def _of_column(column: pa.ChunkedArray, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of lists of that size, and their numbers; NaN for a null among them."""
    if not is_numbers(column.type):
        return _of_values(column.to_pylist(), size)
    fits = pc.fill_null(pc.equal(pc.list_value_length(column), size), False)
    flat = pc.list_flatten(column.filter(fits)).cast(pa.float64(), safe=False)
    numbers = np.asarray(pc.fill_null(flat, np.nan).to_numpy(), np.float64)
    return np.flatnonzero(fits.to_numpy(zero_copy_only=False)), numbers.reshape(-1, size)


def _of_values(values: Sequence[Any], size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rows = [row for row, value in enumerate(values) if isinstance(value, (list, tuple)) and len(value) == size]
    numbers = [[_number_or_nan(entry) for entry in values[row]] for row in rows]
    return np.array(rows, np.int64), np.array(numbers, np.float64).reshape(len(rows), size)


def _number_or_nan(value: Any) -> float:
    number = number_of(value)
    return np.nan if number is None else number


def number_of(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their length; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
