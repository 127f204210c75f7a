"""Rows of files, object stores and databases through Kafka, by the rules of any other message."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.errors import MantaError
from app.events.columns import RECORDS, decode
from app.events.import_columns import IDS, event_values, plain
from app.events.import_sources import Row, Source
from app.events.producer import EventProducer
from app.events.schema import (
    EVENTS,
    ITEMS,
    SCHEMA_VERSION,
    USERS,
    EventRejected,
    columns_message,
    format_time,
    validate_item,
    validate_user,
)
from app.settings import EventSettings, Settings

_SHOWN = 20
_DELIVERY_S = 60.0
Message = tuple[bytes, bytes]


def import_rows(
    source: Source,
    kind: str,
    column_map: Mapping[str, str],
    settings: Settings,
    *,
    dry_run: bool = False,
    refused_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Sends every row of a source to its topic and waits until all are acknowledged.

    Events: ids may be numbers; `event_time` text (RFC 3339), a timestamp, or seconds (above 1e11: milliseconds) since
    1970; without `event_type` a row with a value is a `rating`, any other a `click`; without `event_id` the row's
    content, and its place where the source has an order, make one, so that the same rows sent twice count once.

    Args:
        source: where the rows are.
        kind: `events`, `items` or `users`.
        column_map: name there to name here; others keep theirs.
        settings: with the broker's address; the topics exist.
        dry_run: read and check everything, send nothing (no broker is needed).
        refused_file: gets every refused row as JSON lines `{"row", "reason", "detail"}`.
        progress: called with the number of rows read so far.

    Returns:
        `{"kind", "rows", "sent", "refused", "reasons": {code: n}, "first_refused": [{"row", "reason", "detail"}],
        "dry_run", "seconds"}`; rows count from 1; in a dry run `sent` is what would have been.

    Raises:
        MantaError: the source cannot be read.
        BrokerUnavailable: the broker cannot be reached.
    """
    if kind not in (EVENTS, ITEMS, USERS):
        raise MantaError(f"import: kind {kind!r}, wanted events, items or users")
    started = time.monotonic()
    read = 0

    with _Refusals(refused_file) as refusals:

        def messages() -> Iterator[Message]:
            nonlocal read
            for rows in source.batches(column_map):
                if kind == EVENTS:
                    values = _values(rows, column_map, read if source.ordered else None)
                    yield from _events(values, read, settings.events, refusals)
                else:
                    yield from _entities(_renamed(rows, column_map), read, kind, refusals)
                read += len(rows)
                if progress is not None:
                    progress(read)

        if dry_run:
            sent = sum(1 for _ in messages())
        else:
            producer = EventProducer(settings.kafka, delivery_timeout_s=_DELIVERY_S, linger_ms=20)
            try:
                sent = producer.send_blocking(kind, messages())
            finally:
                producer.close()
    return {
        "kind": kind,
        "rows": read,
        "sent": sent,
        "refused": read - sent,
        "reasons": dict(refusals.reasons),
        "first_refused": refusals.first,
        "dry_run": dry_run,
        "seconds": round(time.monotonic() - started, 3),
    }


class _Refusals:
    """Rows that break the rules: counted, the first ones kept, all written to a file where one is named."""

    def __init__(self, file: Path | None) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: list[dict[str, Any]] = []
        self._stream = file.open("wb") if file is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, row: int, reason: str, detail: str) -> None:
        self.reasons[reason] += 1
        refusal = {"row": row, "reason": reason, "detail": detail}
        if len(self.first) < _SHOWN:
            self.first.append(refusal)
        if self._stream is not None:
            self._stream.write(orjson.dumps(refusal) + b"\n")


def _values(rows: pa.Table | list[Row], column_map: Mapping[str, str], first: int | None) -> list[bytes]:
    """The rows as the JSON of events; `first`: place of the first one, None where the rows have no order."""
    if isinstance(rows, pa.Table):
        return event_values(rows.rename_columns([column_map.get(name, name) for name in rows.column_names]), first)
    named = _renamed(rows, column_map)
    return [_event(row, b"" if first is None else b"%d/" % (first + place)) for place, row in enumerate(named)]


def _renamed(rows: pa.Table | list[Row], column_map: Mapping[str, str]) -> list[Row]:
    found = rows.to_pylist() if isinstance(rows, pa.Table) else rows
    return [{column_map.get(name, name): plain(value) for name, value in row.items()} for row in found]


def _events(values: list[bytes], first: int, settings: EventSettings, refusals: _Refusals) -> Iterator[Message]:
    now = int(time.time() * 1000)
    count = len(values)
    columns = [
        pa.array([0] * count, pa.int32()),
        pa.array(range(count), pa.int64()),
        pa.array([now] * count, pa.int64()),
    ]
    columns += [pa.nulls(count, pa.binary()), pa.array(values, pa.binary())]
    decoded = decode(EVENTS, pa.Table.from_arrays(columns, schema=RECORDS), settings)
    owners = pc.coalesce(decoded.events["user_id"], decoded.events["session_id"]).cast(pa.binary()).to_pylist()
    sent = values if len(owners) == count else [values[place] for place in decoded.events["offset"].to_pylist()]
    yield from zip(owners, sent, strict=True)
    for row in decoded.rejected.select(["offset", "reason", "detail"]).to_pylist():
        refusals.add(first + row["offset"] + 1, row["reason"], row["detail"])


def _event(row: Row, place: bytes) -> bytes:
    """A row as the JSON of an event; cells are plain."""
    event = _there(row)
    for name in IDS:
        if name in event:
            event[name] = _text(event[name])
    if "event_time" in event:
        event["event_time"] = _time(event["event_time"])
    if isinstance(event.get("context"), str):
        event["context"] = _json(event["context"])
    event.setdefault("event_type", "rating" if "value" in event else "click")
    event.setdefault("schema_version", SCHEMA_VERSION)
    encoded = _dumps(event)
    if "event_id" not in event:
        event["event_id"] = hashlib.blake2b(place + encoded, digest_size=16).hexdigest()
        encoded = _dumps(event)
    return encoded


def _entities(rows: list[Row], first: int, kind: str, refusals: _Refusals) -> Iterator[Message]:
    id_field, validate = ("item_id", validate_item) if kind == ITEMS else ("user_id", validate_user)
    for place, row in enumerate(rows):
        columns = _there(row)
        try:
            name, checked = validate(_text(columns.pop(id_field, None)), columns)
            yield name.encode(), columns_message(checked)
        except EventRejected as error:
            refusals.add(first + place + 1, error.code, error.message)


def _there(row: Row) -> Row:
    """The cells in which something is: neither null nor NaN, which stands for null in many files."""
    return {name: value for name, value in row.items() if value is not None and value == value}


def _json(text: str) -> Any:
    """The document; text that is none stays text (and is refused by its type)."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _dumps(event: Row) -> bytes:
    try:
        return orjson.dumps(event)
    except TypeError:
        return b""  # refused as unreadable


def _time(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        return format_time(round(value * (1_000 if abs(value) > 1e11 else 1_000_000)))
    except (OverflowError, ValueError, OSError):
        return str(value)  # no time at all: refused as text


def _text(value: Any) -> Any:
    """A number that stands for an id, as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
