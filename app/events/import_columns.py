"""Rows of a file as the JSON of events, a column at a time.

Text, numbers, truth values and times are written by Arrow; any other cell (lists, objects, text with control
characters) one by one. The same row gives the same bytes wherever it stands, so that the id made of them holds.
"""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.events.identity import identity_hashes
from app.events.schema import SCHEMA_VERSION, format_time

IDS = ("event_id", "user_id", "session_id", "item_id", "surface", "request_id", "variant", "bundle")
_CONTROL = r"[\x00-\x1f]"
_UNREADABLE = "!"  # stands for what JSON has no form for: the row is refused


def event_values(rows: pa.Table, first: int | None) -> list[bytes]:
    """The JSON of each row as an event; what is absent and can be known from the row is added.

    Without `event_type`, a row with a value is a `rating`, any other a `click`; without `event_id` the row's content,
    and its place where there is one, make it.

    Args:
        rows: columns by the names of an event.
        first: place of the first row in its file; None: the rows have no order, equal ones are the same event.
    """
    parts = {name: _texts(name, rows[name].combine_chunks()) for name in rows.column_names}
    value = parts.get("value", pa.nulls(len(rows), pa.string()))
    kinds = pc.if_else(pc.is_valid(value), '"rating"', '"click"')
    parts["event_type"] = pc.coalesce(parts["event_type"], kinds) if "event_type" in parts else kinds
    version = str(SCHEMA_VERSION)
    parts["schema_version"] = pc.coalesce(parts.get("schema_version", pa.nulls(len(rows), pa.string())), version)
    ids = parts.pop("event_id", pa.nulls(len(rows), pa.string()))
    fields = [pc.coalesce(_member(name, texts), "") for name, texts in sorted(parts.items())]
    body = pc.binary_join_element_wise(*fields, "")
    if ids.null_count:
        ids = pc.coalesce(ids, _ids(body, first))
    encoded = pc.binary_join_element_wise('{"event_id":', ids, body, "}", "")
    found: list[bytes] = encoded.cast(pa.binary()).to_pylist()
    return found


def plain(value: Any) -> Any:
    """Dates as RFC 3339, decimals as numbers; anything else as it is."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return format_time(round(moment.timestamp() * 1_000_000))
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, date) else value


def _member(name: str, texts: pa.Array) -> pa.Array:
    """`,"name":TEXT`; null where the text is."""
    return pc.binary_join_element_wise(f",{json.dumps(name)}:", texts, "")


def _ids(body: pa.Array, first: int | None) -> pa.Array:
    """32 hexadecimal digits of each row, quoted."""
    if first is not None:
        places = pa.array(range(first, first + len(body)), pa.int64()).cast(pa.string())
        body = pc.binary_join_element_wise(places, body, "")
    nobody = pa.chunked_array([pa.array([""], pa.string()).take(pa.array([0] * len(body)))])
    digits = identity_hashes(nobody, nobody, pa.chunked_array([body])).tobytes().hex()
    return pa.array([f'"{digits[start : start + 32]}"' for start in range(0, len(digits), 32)], pa.string())


def _texts(name: str, column: pa.Array) -> pa.Array:
    """JSON text of each cell; null where there is nothing."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
    if name in IDS and number:
        return _quoted(_whole(column).cast(pa.string()))
    if name == "event_time" and (number or pa.types.is_timestamp(kind)):
        return _times(column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _strings(column.cast(pa.string()), _embedded if name == "context" else _dumped)
    if number or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    if pa.types.is_timestamp(kind):
        return _times(column)
    return pa.array([None if cell is None else _dumped(cell) for cell in column.to_pylist()], pa.string())


def _whole(column: pa.Array) -> pa.Array:
    """Numbers that stand for ids: whole ones without a point."""
    if not pa.types.is_floating(column.type):
        return column
    texts = column.cast(pa.string())
    whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
    integers = pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, integers, texts)


def _times(column: pa.Array) -> pa.Array:
    """RFC 3339, quoted; numbers are seconds since 1970, above 1e11 milliseconds."""
    if not pa.types.is_timestamp(column.type):
        numbers = column.cast(pa.float64())
        scale = pc.if_else(pc.greater(pc.abs(numbers), 1e11), 1_000.0, 1_000_000.0)
        scaled = pc.round(pc.multiply(numbers, scale))
        if pc.any(pc.greater(pc.abs(scaled), 9e18)).as_py():  # no time at all: refused as text
            return _quoted(numbers.cast(pa.string()))
        column = scaled.cast(pa.int64()).cast(pa.timestamp("us"))
    micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    seconds = pc.floor(pc.divide(micros.cast(pa.float64()), 1e6)).cast(pa.int64())
    odd = pc.not_equal(pc.multiply(seconds, 1_000_000), micros)
    texts = seconds.cast(pa.timestamp("s")).cast(pa.string())
    if pc.any(odd).as_py():
        texts = pc.if_else(odd, micros.cast(pa.timestamp("us")).cast(pa.string()), texts)
    return _quoted(pc.binary_join_element_wise(pc.replace_substring(texts, " ", "T"), "Z", ""))


def _strings(column: pa.Array, one: Callable[[Any], str]) -> pa.Array:
    if one is _embedded or pc.any(pc.match_substring_regex(column, _CONTROL)).as_py():
        return pa.array([None if cell is None else one(cell) for cell in column.to_pylist()], pa.string())
    for mark in ("\\", '"'):
        column = pc.replace_substring(column, mark, "\\" + mark)
    return _quoted(column)


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', texts, '"', "")


def _dumped(cell: Any) -> str:
    try:
        return orjson.dumps(cell, default=plain).decode()
    except (TypeError, ValueError):
        return _UNREADABLE


def _embedded(text: str) -> str:
    """JSON in a text column; text that is none stays text (and is refused by its type)."""
    try:
        return orjson.dumps(orjson.loads(text)).decode()
    except orjson.JSONDecodeError:
        return _dumped(text)
