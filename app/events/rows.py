"""Messages one by one: what the columns cannot vouch for is judged by the rules of the edge."""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from app.events.schema import EVENT_FIELDS, Event, EventRejected, validate_event
from app.settings import EventSettings

_KNOWN = frozenset(EVENT_FIELDS)
# Arrivals that RFC 3339 can say, in milliseconds: the years 1 to 9999
FIRST_ARRIVAL, LAST_ARRIVAL = -62_135_596_800_000, 253_402_300_799_000
_MAX_DETAIL = 1_000  # characters: what was found may be as long as the message


def judge_rows(
    topic: str, records: pa.Table, settings: EventSettings
) -> tuple[list[dict[str, Any]], list[int], list[dict[str, Any]]]:
    """(accepted rows as the lake's columns, their places among `records`, rejected rows with reason and raw bytes)."""
    accepted: list[dict[str, Any]] = []
    places: list[int] = []
    rejected: list[dict[str, Any]] = []
    for place, record in enumerate(records.to_pylist()):
        try:
            event = validate_event(parse_json(record["value"]), record["record_time"], settings)
            accepted.append(event_row(topic, record, event))
            places.append(place)
        except EventRejected as error:
            rejected.append(rejection(topic, record, error))
    return accepted, places, rejected


def parse_json(value: bytes | None) -> Any:
    """The decoded message.

    Raises:
        EventRejected: code `json`: nothing there, broken UTF-8, not JSON, NaN.
    """
    if not value:
        raise EventRejected("json", "found an empty value, wanted a JSON object")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise EventRejected("json", f"not JSON: {error}") from None


def check_arrival(record_time: int) -> None:
    """Refuses a record's timestamp, in milliseconds, that no calendar has.

    Raises:
        EventRejected: code `range`.
    """
    if not FIRST_ARRIVAL <= record_time <= LAST_ARRIVAL:
        raise odd_arrival(record_time)


def odd_arrival(record_time: int) -> EventRejected:
    """Why a timestamp is refused: microseconds sent as milliseconds, mostly."""
    found = f"found {record_time} milliseconds since 1970, wanted a time between the years 1 and 9999"
    return EventRejected("range", f"the record's timestamp: {found}")


def rejection(topic: str, record: dict[str, Any], error: EventRejected) -> dict[str, Any]:
    """A row of `columns.REJECTED`; a timestamp that no calendar has becomes the nearest that one has."""
    place = {name: record[name] for name in ("partition", "offset", "key")}
    place["record_time"] = min(max(record["record_time"], FIRST_ARRIVAL), LAST_ARRIVAL)
    detail = error.message[:_MAX_DETAIL].encode("utf-8", "replace").decode()
    return {"topic": topic, **place, "reason": error.code, "detail": detail, "raw": record["value"]}


def event_row(topic: str, record: dict[str, Any], event: Event) -> dict[str, Any]:
    """A row of `columns.EVENT_COLUMNS`."""
    row: dict[str, Any] = {name: getattr(event, name) for name in EVENT_FIELDS}
    if event.event_id is None:
        row["event_id"] = f"{topic}/{record['partition']}/{record['offset']}"
    moment = event.time_us
    record_us = record["record_time"] * 1000
    return row | {
        "event_time": record_us if moment is None else moment,
        "context": _json(event.context),
        "extra": _json(event.model_extra),
        "topic": topic,
        "partition": record["partition"],
        "offset": record["offset"],
        "record_time": record_us,
        "key": record["key"],
    }


def context_of(raw: pa.ChunkedArray, asked: NDArray[np.bool_]) -> tuple[pa.Array, pa.Array, NDArray[np.bool_]]:
    """JSON text of `context` and of all unknown keys of the rows asked for, and which rows are well-formed in that."""
    known = np.ones(len(asked), bool)
    rows = np.flatnonzero(asked)
    if not len(rows):
        return pa.nulls(len(asked), pa.string()), pa.nulls(len(asked), pa.string()), known
    contexts: list[str | None] = [None] * len(asked)
    extras: list[str | None] = [None] * len(asked)
    for row, value in zip(rows.tolist(), raw.take(rows).to_pylist(), strict=True):
        try:
            found = orjson.loads(value)
            context = found.get("context")
            known[row] = context is None or isinstance(context, dict)
            contexts[row] = _json(context)
            extras[row] = _json({key: value for key, value in found.items() if key not in _KNOWN and value is not None})
        except (orjson.JSONDecodeError, TypeError):
            known[row] = False
    return pa.array(contexts, pa.string()), pa.array(extras, pa.string()), known


def _json(found: dict[str, Any] | None) -> str | None:
    return orjson.dumps(found).decode() if found else None
