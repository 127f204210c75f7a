"""Files of events, items or users (Parquet, CSV, JSON lines) through Kafka, by the rules of any other message."""

import gzip
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from app.errors import MantaError
from app.events.columns import RECORDS, decode
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

Row = dict[str, Any]
_BATCH = 20_000
_SHOWN = 20
_IDS = ("event_id", "user_id", "session_id", "item_id", "surface", "request_id", "variant", "bundle")
_DELIVERY_S = 60.0


def import_file(
    path: Path,
    kind: str,
    column_map: Mapping[str, str],
    settings: Settings,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Sends every row of a file to its topic and waits until all are acknowledged.

    Events: ids may be numbers; `event_time` text (RFC 3339), a timestamp, or seconds (above 1e11: milliseconds) since
    1970; without `event_type` a row with a value is a `rating`, any other a `click`; without `event_id` the row's place
    and content make one, so that the same file sent twice counts once.

    Args:
        path: `.parquet`, `.csv`, `.jsonl`, `.ndjson` or `.json` (a document a line); `.csv.gz` too.
        kind: `events`, `items` or `users`.
        column_map: name in the file to name here; others keep theirs.
        settings: with the broker's address; the topics exist.
        progress: called with the number of rows read so far.

    Returns:
        `{"kind", "rows", "sent", "refused", "reasons": {code: n}, "first_refused": [{"row", "reason", "detail"}],
        "seconds"}`; rows count from 1.

    Raises:
        MantaError: the file cannot be read as what its name says.
        BrokerUnavailable: the broker cannot be reached.
    """
    if kind not in (EVENTS, ITEMS, USERS):
        raise MantaError(f"import: kind {kind!r}, wanted events, items or users")
    started = time.monotonic()
    refusals = _Refusals()
    read = 0

    def messages() -> Iterator[tuple[bytes, bytes]]:
        nonlocal read
        for rows in _batches(path, column_map):
            named = [{column_map.get(name, name): value for name, value in row.items()} for row in rows]
            if kind == EVENTS:
                yield from _events(named, read, settings.events, refusals)
            else:
                yield from _entities(named, read, kind, refusals)
            read += len(rows)
            if progress is not None:
                progress(read)

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
        "seconds": round(time.monotonic() - started, 3),
    }


class _Refusals:
    """Rows that break the rules: counted, the first ones kept."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: list[dict[str, Any]] = []

    def add(self, row: int, reason: str, detail: str) -> None:
        self.reasons[reason] += 1
        if len(self.first) < _SHOWN:
            self.first.append({"row": row, "reason": reason, "detail": detail})


def _events(rows: list[Row], first: int, settings: EventSettings, refusals: _Refusals) -> Iterator[tuple[bytes, bytes]]:
    values = [_event(row, first + place) for place, row in enumerate(rows)]
    now = int(time.time() * 1000)
    count = len(rows)
    columns = [
        pa.array([0] * count, pa.int32()),
        pa.array(range(count), pa.int64()),
        pa.array([now] * count, pa.int64()),
    ]
    columns += [pa.nulls(count, pa.binary()), pa.array(values, pa.binary())]
    decoded = decode(EVENTS, pa.Table.from_arrays(columns, schema=RECORDS), settings)
    places = decoded.events["offset"].to_pylist()
    owners = pc.coalesce(decoded.events["user_id"], decoded.events["session_id"]).to_pylist()
    for place, owner in zip(places, owners, strict=True):
        yield owner.encode(), values[place]
    for row in decoded.rejected.select(["offset", "reason", "detail"]).to_pylist():
        refusals.add(first + row["offset"] + 1, row["reason"], row["detail"])


def _event(row: Row, place: int) -> bytes:
    """The row as the JSON of an event."""
    event = {name: _plain(value) for name, value in row.items() if value is not None}
    for name in _IDS:
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
        event["event_id"] = hashlib.blake2b(b"%d/" % place + encoded, digest_size=16).hexdigest()
        encoded = _dumps(event)
    return encoded


def _entities(rows: list[Row], first: int, kind: str, refusals: _Refusals) -> Iterator[tuple[bytes, bytes]]:
    id_field, validate = ("item_id", validate_item) if kind == ITEMS else ("user_id", validate_user)
    for place, row in enumerate(rows):
        columns = {name: _plain(value) for name, value in row.items() if value is not None}
        try:
            name, checked = validate(_text(columns.pop(id_field, None)), columns)
            yield name.encode(), columns_message(checked)
        except EventRejected as error:
            refusals.add(first + place + 1, error.code, error.message)


def _batches(path: Path, column_map: Mapping[str, str]) -> Iterator[list[Row]]:
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            for batch in pa.parquet.ParquetFile(path).iter_batches(_BATCH):
                yield batch.to_pylist()
        elif name.endswith(".csv"):
            texts = {name: pa.string() for name in [*_IDS, *column_map] if column_map.get(name, name) in _IDS}
            read = pa.csv.ReadOptions(block_size=4_000_000)
            convert = pa.csv.ConvertOptions(
                strings_can_be_null=True, null_values=["", "NULL", "null", "NaN"], column_types=texts
            )
            for batch in pa.csv.open_csv(path, read_options=read, convert_options=convert):
                yield batch.to_pylist()
        elif name.endswith((".jsonl", ".ndjson", ".json")):
            yield from _lines(path)
        else:
            raise MantaError(f"import: {path}: wanted .parquet, .csv, .jsonl or .ndjson")
    except (OSError, pa.ArrowInvalid) as error:
        raise MantaError(f"import: {path}: not readable: {str(error).partition(chr(10))[0]}") from None


def _lines(path: Path) -> Iterator[list[Row]]:
    rows: list[Row] = []
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            row = _json(line)
            if not isinstance(row, dict):
                raise MantaError(f"import: {path}: line {number}: found {line[:40]!r}, wanted a JSON object")
            rows.append(row)
            if len(rows) == _BATCH:
                yield rows
                rows = []
    if rows:
        yield rows


def _json(text: str | bytes) -> Any:
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


def _plain(value: Any) -> Any:
    """Dates as RFC 3339; anything else as it is."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return format_time(round(moment.timestamp() * 1_000_000))
    return value.isoformat() if isinstance(value, date) else value


def _time(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return format_time(round(value * (1_000 if abs(value) > 1e11 else 1_000_000)))


def _text(value: Any) -> Any:
    """A number that stands for an id, as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
