"""Messages of the topic `impressions` as columns: one row an answer."""

from typing import Any

import orjson
import pyarrow as pa
from pydantic import ValidationError

from app.events.columns import MICROS, REJECTED, Decoded
from app.events.rows import parse_json, rejection
from app.events.schema import EventRejected, Impression, check_version, parse_time, short

SHOWN = pa.struct(
    [
        ("item_id", pa.string()),
        ("position", pa.int32()),
        ("score", pa.float64()),
        ("propensity", pa.float64()),
        ("sources", pa.list_(pa.string())),
    ]
)

MOST_POSITION = 2**31 - 1  # what the column holds
_SHOWN_FIELDS = tuple(field.name for field in SHOWN)

IMPRESSION_COLUMNS = pa.schema(
    [
        ("request_id", pa.string()),
        ("surface", pa.string()),
        ("variant", pa.string()),
        ("bundle", pa.string()),
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("time", MICROS),
        ("degraded", pa.string()),
        ("items", pa.list_(SHOWN)),
        ("context", pa.string()),  # JSON
        ("extra", pa.string()),  # JSON of every other key
        ("schema_version", pa.int32()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("record_time", MICROS),
    ]
)


def decode_impressions(topic: str, records: pa.Table) -> Decoded:
    """Checks the messages of `impressions` (`columns.RECORDS`)."""
    accepted: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for record in records.to_pylist():
        try:
            accepted.append(_row(topic, record, _validate(parse_json(record["value"]))))
        except EventRejected as error:
            rejected.append(rejection(topic, record, error))
    return Decoded(pa.Table.from_pylist(accepted, IMPRESSION_COLUMNS), pa.Table.from_pylist(rejected, REJECTED))


def _validate(raw: object) -> Impression:
    if isinstance(raw, dict):
        check_version(raw.get("schema_version"))
    try:
        found = Impression.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, value = ".".join(str(part) for part in first["loc"]), short(first.get("input"))
        raise EventRejected("range", f"{field}: found {value}, wanted {first['msg']}", field) from None
    check_version(found.schema_version)  # also where it came as text
    for place, item in enumerate(found.items):
        if item.position > MOST_POSITION:
            field = f"items.{place}.position"
            raise EventRejected("range", f"{field}: found {item.position}, wanted at most {MOST_POSITION}", field)
    return found


def _row(topic: str, record: dict[str, Any], found: Impression) -> dict[str, Any]:
    row = {name: getattr(found, name) for name in ("request_id", "surface", "variant", "bundle", "degraded")}
    row |= {"user_id": found.user_id, "session_id": found.session_id, "schema_version": found.schema_version}
    items = [{name: getattr(item, name) for name in _SHOWN_FIELDS} for item in found.items]
    return row | {
        "time": parse_time(found.time),
        "items": items,
        "context": orjson.dumps(found.context).decode() if found.context else None,
        "extra": orjson.dumps(found.model_extra).decode() if found.model_extra else None,
        "topic": topic,
        "partition": record["partition"],
        "offset": record["offset"],
        "record_time": record["record_time"] * 1000,
    }
