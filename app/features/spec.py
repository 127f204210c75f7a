"""The feature spec of a bundle: which features the ranker sees, and how item columns become numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from app.models.interactions import Catalogue
from app.models.vectors import vector_size

MAX_TERMS = 64  # width of the content vectors: what the hot path gathers per candidate
MAX_CATEGORIES = 64  # a string column with more distinct values is text, not a category


class TermColumn(BaseModel):
    """A column of strings or lists of strings; each known value is one dimension of the content vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    terms: tuple[str, ...]


class NumberColumn(BaseModel):
    """A column of numbers or booleans, standardised by what the catalogue held when the spec was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    mean: float
    scale: float


class VectorColumn(BaseModel):
    """A column of vectors (a picture's or a text's embedding) of one size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int


class FeatureSpec(BaseModel):
    """What training and serving agree on; saved in the bundle as JSON.

    Attributes:
        sources: candidate sources the ranker knows, in the order of their features.
        features: names in `app.features.catalogue.FEATURES`, in order.
        half_lives_days: decays of the item statistics.
        terms, numbers: item columns that make the content arrays.
        vectors: item columns of vectors, each of which is features.
        session_gap_s: the longest silence within a session, seconds.
        year: the number column that is a calendar year; empty: none.
        user_numbers, context_numbers: keys of user columns and request context that are features (absent: 0).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    sources: tuple[str, ...]
    features: tuple[str, ...]
    half_lives_days: tuple[float, ...] = (7.0, 60.0, 500.0)
    session_gap_s: float = 1800.0
    terms: tuple[TermColumn, ...] = ()
    numbers: tuple[NumberColumn, ...] = ()
    vectors: tuple[VectorColumn, ...] = ()
    year: str = ""
    user_numbers: tuple[str, ...] = ()
    context_numbers: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Dimensions of a content vector."""
        return sum(len(column.terms) for column in self.terms)

    def content(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Content vectors of items by their columns: float32 (n, width), unit length or zero.

        Columns that are missing, null or of another type count as absent.
        """
        out = np.zeros((len(rows), self.width), np.float32)
        start = 0
        for column in self.terms:
            place = {term: start + number for number, term in enumerate(column.terms)}
            for row, values in enumerate(rows):
                value = values.get(column.name)
                for term in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
                    if isinstance(term, str) and term in place:
                        out[row, place[term]] = 1.0
            start += len(column.terms)
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
        return out

    def standardised(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Standardised numbers of items by their columns: float32 (n, len(numbers)) in [-5, 5]; missing: 0."""
        out = np.zeros((len(rows), len(self.numbers)), np.float32)
        for place, column in enumerate(self.numbers):
            for row, values in enumerate(rows):
                value = values.get(column.name)
                if isinstance(value, int | float) and np.isfinite(value):
                    out[row, place] = min(max((value - column.mean) / column.scale, -5.0), 5.0)
        return out


def describe_columns(catalogue: Catalogue) -> dict[str, Any]:
    """The fields `terms, numbers, vectors, year` of a spec, from the types and values of the catalogue's columns."""
    terms: list[TermColumn] = []
    numbers: list[NumberColumn] = []
    vectors: list[VectorColumn] = []
    for name in catalogue.columns.column_names:
        column = catalogue.columns.column(name)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
            numbers += _number_column(name, column)
        elif size := vector_size(column):
            vectors.append(VectorColumn(name=name, size=size))
        else:
            terms += _term_column(name, column)
    year = next((n.name for n in numbers if n.name == "year" or n.name.endswith("_year")), "")
    return {
        "terms": _most_frequent(terms, catalogue),
        "numbers": tuple(numbers),
        "vectors": tuple(vectors),
        "year": year,
    }


def _number_column(name: str, column: pa.ChunkedArray) -> list[NumberColumn]:
    values = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() == values.max():
        return []
    return [NumberColumn(name=name, mean=float(values.mean()), scale=float(values.std()))]


def _term_column(name: str, column: pa.ChunkedArray) -> list[TermColumn]:
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    values = pc.list_flatten(column) if listed else column
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return []
    distinct = [term for term in pc.unique(values).to_pylist() if term is not None]
    if len(distinct) < 2 or (not listed and len(distinct) > MAX_CATEGORIES):
        return []
    return [TermColumn(name=name, terms=tuple(sorted(distinct)))]


def _most_frequent(columns: list[TermColumn], catalogue: Catalogue) -> tuple[TermColumn, ...]:
    """The columns cut to their MAX_TERMS most frequent terms in all."""
    if sum(len(column.terms) for column in columns) <= MAX_TERMS:
        return tuple(columns)
    counts: Counter[tuple[str, str]] = Counter()
    for column in columns:
        values = catalogue.columns.column(column.name)
        nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        for entry in pc.value_counts(pc.list_flatten(values) if nested else values).to_pylist():
            if entry["values"] is not None:
                counts[column.name, entry["values"]] = entry["counts"]
    kept = sorted(counts, key=lambda key: (-counts[key], key))[:MAX_TERMS]
    cut = [TermColumn(name=c.name, terms=tuple(sorted(t for n, t in kept if n == c.name))) for c in columns]
    return tuple(column for column in cut if column.terms)
