"""Kinds of item columns: what is put must be of the kind that the live catalogue has."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from app.events.schema import EventRejected
from app.models.vectors import vector_size

LOOKED_AT = 100  # values of a column whose kind is asked
NOTHING, NUMBERS = "nothing", "a list of numbers"


def kind_of(value: Any) -> str:
    """The kind of a column's value, as messages name it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    if not value:
        return NOTHING
    return "a list of text" if isinstance(value[0], str) else NUMBERS


def kinds_of(columns: pa.Table) -> dict[str, str]:
    """Column name to the kind of its first value; of vectors with their size; columns without values are left out."""
    kinds: dict[str, str] = {}
    for name in columns.column_names:
        column = columns.column(name)
        if size := vector_size(column):
            kinds[name] = _numbers(size)
            continue
        some = column.take(pc.indices_nonzero(column.is_valid())[:LOOKED_AT]).to_pylist()
        known = [kind for kind in map(kind_of, some) if kind != NOTHING]
        if known:
            kinds[name] = known[0]
    return kinds


def check_kinds(columns: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Refuses what differs from the catalogue.

    Raises:
        EventRejected: code `type`: another kind, or a vector of another size.
    """
    for name, value in columns.items():
        found, wanted = kind_of(value), kinds.get(name)
        if wanted is None or found in (wanted, NOTHING):
            continue
        exact = _numbers(len(value)) if found == NUMBERS else found
        if exact != wanted:
            raise EventRejected("type", f"{name}: found {exact}, wanted {wanted} as in the catalogue", name)


def _numbers(size: int) -> str:
    return f"a list of {size} numbers"
