"""Rows of a file as the JSON of events, a column at a time.

Text, numbers, truth values and times are written by Arrow; any other cell (lists, objects, text with control
characters) one by one. The same row gives the same bytes wherever it stands, so that the id made of them holds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.events.identity import identity_hashes
from app.events.schema import SCHEMA_VERSION, format_time

IDS = ("event_id", "user_id", "session_id", "item_id", "surface", "request_id", "variant", "bundle")
_LOCAL_TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?$"
_FAR_US = 9e18
_CONTROL = r"[\x00-\x1f]"
_UNREADABLE = "!"  # stands for what JSON has no form for: the row is refused
_JSON = pa.json_(pa.string())  # cells that are written already


def columns_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as columns; cells that have no single plain type (mixed, lists, objects) are JSON already."""
    names = list(dict.fromkeys(chain.from_iterable(rows))) or ["event_type"]  # without a column there are no rows
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Columns as rows; cells of JSON are read."""
    columns = [_cells(table[name].combine_chunks()) for name in table.column_names]
    return [dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def json_cells(texts: pa.Array) -> pa.Array:
    """A column of cells that are JSON already."""
    return pa.ExtensionArray.from_storage(_JSON, texts)


def text_cells(column: pa.Array) -> pa.Array:
    """JSON of text."""
    return _strings(column, _dumped)


def time_cells(column: pa.Array) -> pa.Array:
    """JSON of times: RFC 3339; numbers are seconds since 1970, above 1e11 milliseconds."""
    if not pa.types.is_timestamp(column.type):
        numbers = column.cast(pa.float64())
        scale = pc.if_else(pc.greater(pc.abs(numbers), 1e11), 1_000.0, 1_000_000.0)
        scaled = pc.round(pc.multiply(numbers, scale))
        far = pc.not_equal(pc.less(pc.abs(scaled), _FAR_US), True)  # no time at all: refused as text
        column = pc.if_else(far, None, scaled).cast(pa.int64()).cast(pa.timestamp("us"))
        if pc.any(far).as_py():
            return pc.coalesce(time_cells(column), _quoted(numbers.cast(pa.string())))
    micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    seconds = pc.floor(pc.divide(micros.cast(pa.float64(), safe=False), 1e6)).cast(pa.int64())
    odd = pc.not_equal(pc.multiply(seconds, 1_000_000), micros)
    texts = seconds.cast(pa.timestamp("s")).cast(pa.string())
    if pc.any(odd).as_py():
        texts = pc.if_else(odd, micros.cast(pa.timestamp("us")).cast(pa.string()), texts)
    return _quoted(pc.binary_join_element_wise(pc.replace_substring(texts, " ", "T"), "Z", ""))


def local_times(texts: pa.StringArray) -> pa.Array:
    """JSON of text that is a date or a time without a zone, in UTC; null where it is none."""
    shaped = pc.if_else(pc.match_substring_regex(texts, _LOCAL_TIME), texts, None)
    try:
        return time_cells(shaped.cast(pa.timestamp("us")))
    except pa.ArrowInvalid:  # one of them is no day or no hour
        return time_cells(pa.array([_local_time(text) for text in shaped.to_pylist()], pa.timestamp("us")))


def event_values(rows: pa.Table, first: int | None) -> pa.Array:
    """The JSON of each row as an event, binary; what is absent and can be known from the row is added.

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
    return pc.binary_join_element_wise('{"event_id":', ids, body, "}", "").cast(pa.binary())


def plain(value: Any) -> Any:
    """Dates as RFC 3339, decimals as numbers; anything else as it is."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return format_time(round(moment.timestamp() * 1_000_000))
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, date) else value


def id_text(value: Any) -> Any:
    """A number that stands for an id, as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _column(name: str, cells: list[Any]) -> pa.Array:
    try:
        column = pa.array(cells)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        column = None
    if column is not None and _is_plain(column.type):
        return column
    return json_cells(pa.array([_cell(name, cell) for cell in cells], pa.string()))


def _cells(column: pa.Array) -> list[Any]:
    if not isinstance(column.type, pa.JsonType):
        found: list[Any] = column.to_pylist()
        return found
    return [None if text is None else orjson.loads(text) for text in column.storage.to_pylist()]


def _local_time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        return None


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Arrow surely holds each cell as it was; it cuts times among dates, and takes text for bytes."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return number or any(
        is_kind(kind) for is_kind in (pa.types.is_null, pa.types.is_boolean, pa.types.is_string, pa.types.is_timestamp)
    )


def _cell(name: str, value: Any) -> str | None:
    """JSON text of one cell, as its column would have written it."""
    value = plain(value)
    if value is None or value != value:
        return None
    if name == "context" and isinstance(value, str):
        return _embedded(value)
    if name in IDS:
        value = id_text(value)
    elif name == "event_time" and isinstance(value, int | float) and not isinstance(value, bool):
        value = _moment(value)
    elif name == "event_time" and isinstance(value, str):
        found: str | None = local_times(pa.array([value], pa.string()))[0].as_py()
        return found or _dumped(value)
    return _dumped(value)


def _moment(value: float) -> str:
    """RFC 3339 of seconds since 1970, above 1e11 milliseconds."""
    try:
        return format_time(round(value * (1_000 if abs(value) > 1e11 else 1_000_000)))
    except (OverflowError, ValueError, OSError):
        return str(value)  # no time at all: refused as text


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
    if isinstance(kind, pa.JsonType):
        return column.storage
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
        kind = column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
    if name in IDS and number:
        return _quoted(_whole(column).cast(pa.string()))
    if name == "event_time" and (number or pa.types.is_temporal(kind)):
        return time_cells(column.cast(pa.timestamp("us")) if pa.types.is_date(kind) else column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = _strings(column.cast(pa.string()), _embedded if name == "context" else _dumped)
        return pc.coalesce(local_times(column.cast(pa.string())), texts) if name == "event_time" else texts
    if number or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    if pa.types.is_timestamp(kind):
        return time_cells(column)
    return pa.array([None if cell is None else _dumped(cell) for cell in column.to_pylist()], pa.string())


def _whole(column: pa.Array) -> pa.Array:
    """Numbers that stand for ids: whole ones without a point."""
    if not pa.types.is_floating(column.type):
        return column
    texts = column.cast(pa.string())
    whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
    integers = pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, integers, texts)


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
