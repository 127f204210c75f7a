"""Item columns laid out for filtering: which rows of the bundle's catalogue satisfy one condition on one column."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.retrieval.conditions import passes

Mask = NDArray[np.bool_]


class NumberColumn:
    """Numbers or booleans: float64 (n,), NaN where missing."""

    holds: type | tuple[type, ...] | None = (int, float)

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._values: NDArray[np.float64] = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))

    def mask(self, condition: Mapping[str, Any]) -> Mask:
        """bool (n,): the rows that pass every operator of the condition."""
        values = self._values
        out = np.ones(len(values), np.bool_)
        for operator, wanted in condition.items():
            out &= _number_mask(values, operator, wanted)
        return out


class TermColumn:
    """Strings, or lists of strings, as an inverted index."""

    holds: type | tuple[type, ...] | None = str

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self._n = len(array)
        self._missing: Mask = array.is_null().to_numpy(zero_copy_only=False).astype(np.bool_)
        self.listed = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        values = pc.list_flatten(array) if self.listed else array
        owner = pc.list_parent_indices(array).to_numpy() if self.listed else np.arange(self._n)
        coded = values.dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        self._terms: list[str] = coded.dictionary.to_pylist()
        self._rows, self._starts = _inverted(codes, owner.astype(np.int64), len(self._terms))
        self._code = {term: code for code, term in enumerate(self._terms)}
        self._lengths: NDArray[np.int64] = np.bincount(owner[codes >= 0], minlength=self._n)

    def mask(self, condition: Mapping[str, Any]) -> Mask:
        """bool (n,): the rows that pass every operator of the condition."""
        out = np.ones(self._n, np.bool_)
        for operator, wanted in condition.items():
            out &= self._operator_mask(operator, wanted)
        return out

    def _operator_mask(self, operator: str, wanted: Any) -> Mask:
        if operator == "exists":
            missing: Mask = self._missing
            return ~missing if wanted else missing
        if operator == "any":
            return self._union(wanted)
        if operator == "none":
            return ~self._union(wanted)
        if operator == "all":
            return self._all(wanted)
        if operator == "eq" and self.listed:
            terms = wanted if isinstance(wanted, list) else [wanted]
            exact: Mask = self._all(terms) & (self._lengths == len(terms)) & ~self._missing
            return exact
        return self._where([passes({operator: wanted}, [term] if self.listed else term) for term in self._terms])

    def _rows_of(self, term: Any) -> NDArray[np.int64]:
        code = self._code.get(term) if isinstance(term, str) else None
        return self._rows[:0] if code is None else self._rows[self._starts[code] : self._starts[code + 1]]

    def _nothing(self) -> Mask:
        return np.zeros(self._n, np.bool_)

    def _union(self, terms: Any) -> Mask:
        out = self._nothing()
        for term in terms:
            out[self._rows_of(term)] = True
        return out

    def _all(self, terms: Any) -> Mask:
        out = np.ones(self._n, np.bool_)
        for term in terms:
            out &= self._union([term])
        return out

    def _where(self, passing: list[bool]) -> Mask:
        out = self._nothing()
        for code in np.flatnonzero(passing):
            out[self._rows[self._starts[code] : self._starts[code + 1]]] = True
        return out


class OtherColumn:
    """Whatever else a column may hold, value by value."""

    holds: type | tuple[type, ...] | None = None  # anything may be asked

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._values = column.to_pylist()

    def mask(self, condition: Mapping[str, Any]) -> Mask:
        """bool (n,): the rows that pass every operator of the condition."""
        return np.fromiter((passes(condition, value) for value in self._values), np.bool_, len(self._values))


def column_of(column: pa.ChunkedArray) -> NumberColumn | TermColumn | OtherColumn:
    """The layout that fits the column's type."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return NumberColumn(column)
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_string(inner) or pa.types.is_large_string(inner):
        return TermColumn(column)
    return OtherColumn(column)


def _number_mask(values: NDArray[np.float64], operator: str, wanted: Any) -> Mask:
    if operator == "exists":
        return ~np.isnan(values) if wanted else np.isnan(values)
    if operator in ("any", "none", "all"):
        numbers = [float(one) for one in wanted if isinstance(one, int | float)]
        inside = np.isin(values, numbers)
        if operator == "all":
            same = len(set(numbers)) == 1 and len(numbers) == len(wanted)
            return (inside & same) | (len(wanted) == 0)
        return inside if operator == "any" else ~inside
    number = float(wanted) if isinstance(wanted, int | float) else np.nan
    compare = {"eq": np.equal, "gte": np.greater_equal, "gt": np.greater, "lte": np.less_equal, "lt": np.less}
    found: Mask = compare[operator](values, number)
    return found


def _inverted(
    codes: NDArray[np.int64], owner: NDArray[np.int64], n_terms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by term, each once, and where each term starts."""
    known = codes >= 0
    pairs = np.unique(codes[known].astype(np.int64) << 32 | owner[known])
    starts = np.searchsorted(pairs >> 32, np.arange(n_terms + 1))
    return pairs & 0xFFFFFFFF, starts
