"""Messages of the topic `impressions` as columns: one row an answer.

The columns vouch for what is surely right; the rest is judged one by one by `schema.Impression`, with the same result.
"""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from app.events.json_columns import (
    MICROS,
    Decoded,
    Judged,
    decode_columns,
    lengths_hold,
    same_text,
    there,
    times,
    truth,
    within,
)
from app.events.rows import parse_json, rejection
from app.events.schema import (
    MAX_ID_BYTES,
    SCHEMA_VERSION,
    EventRejected,
    Impression,
    check_version,
    parse_time,
    refusal,
    short,
)

SHOWN = pa.struct(
    [
        ("item_id", pa.string()),
        ("position", pa.int32()),
        ("score", pa.float64()),
        ("propensity", pa.float64()),
        ("sources", pa.list_(pa.string())),
    ]
)

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
        ("feature_names", pa.list_(pa.string())),
        ("features", pa.list_(pa.list_(pa.float32()))),  # a row an item
    ]
)

_IDS = ("request_id", "surface", "variant", "bundle", "user_id", "session_id")
_TEXTS = (*_IDS, "time", "degraded")
_NEEDED = ("request_id", "surface", "time", "items")
_WIRE = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("schema_version", pa.int64()),
        (
            "items",
            pa.list_(
                pa.struct([field.with_type(pa.int64()) if field.name == "position" else field for field in SHOWN])
            ),
        ),
        ("feature_names", pa.list_(pa.string())),
        ("features", pa.list_(pa.list_(pa.float64()))),
    ]
)
_MOST = 2**31 - 1  # of a position: what its column holds
_LARGEST = float(np.finfo(np.float32).max)
_KNOWN = frozenset(Impression.model_fields)

Bools = NDArray[np.bool_]


def decode_impressions(topic: str, records: pa.Table, max_future_s: float) -> Decoded:
    """Checks the messages of `impressions` (`json_columns.RECORDS`); `max_future_s`: `events.max_future_s`."""

    def check(wire: pa.Table, rows: pa.Table) -> tuple[pa.Table, Bools]:
        return _check(topic, wire, rows, max_future_s)

    def judge(rows: pa.Table) -> Judged:
        return judge_impressions(topic, rows, max_future_s)

    return decode_columns(records, _WIRE, IMPRESSION_COLUMNS, check, judge)


def judge_impressions(topic: str, records: pa.Table, max_future_s: float) -> Judged:
    """The same one by one."""
    accepted: list[dict[str, Any]] = []
    places: list[int] = []
    rejected: list[dict[str, Any]] = []
    for place, record in enumerate(records.to_pylist()):
        try:
            row = _row(topic, record, _validate(parse_json(record["value"])))
            if row["time"] > row["record_time"] + int(max_future_s * 1_000_000):
                raise EventRejected("future", f"time: found one beyond {max_future_s:g} s after arrival", "time")
            accepted.append(row)
            places.append(place)
        except EventRejected as error:
            rejected.append(rejection(topic, record, error))
    return accepted, places, rejected


def _validate(raw: object) -> Impression:
    if not isinstance(raw, dict):
        raise EventRejected("type", f"found {short(raw)}, wanted an object")
    check_version(raw.get("schema_version"))
    try:
        found = Impression.model_validate(raw)
    except ValidationError as error:
        raise refusal(error) from None
    check_version(found.schema_version)  # as text it is only known by now
    for item in found.items:
        if item.position > _MOST:
            raise EventRejected("range", f"items.position: found {item.position}, wanted at most {_MOST}", "items")
    if found.features is not None or found.feature_names is not None:
        _check_features(found)
    return found


def _check_features(found: Impression) -> None:
    names, rows = found.feature_names or (), found.features or ()
    if len(rows) != len(found.items) or any(len(row) != len(names) for row in rows):
        lengths = f"{len(rows)} rows of {sorted({len(row) for row in rows})}"
        wanted = f"{len(found.items)} of {len(names)}: one an item, of one number a name"
        raise EventRejected("range", f"features: found {lengths}, wanted {wanted}", "features")
    if not all(abs(value) <= _LARGEST for row in rows for value in row):
        raise EventRejected("range", "features: found a number beyond float32, wanted finite ones", "features")


def _row(topic: str, record: dict[str, Any], found: Impression) -> dict[str, Any]:
    row = {name: getattr(found, name) for name in (*_IDS, "degraded", "schema_version", "feature_names", "features")}
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


def _check(topic: str, wire: pa.Table, records: pa.Table, max_future_s: float) -> tuple[pa.Table, Bools]:
    """IMPRESSION_COLUMNS of all rows, and which of them are surely right."""
    good = lengths_hold(wire, _IDS, MAX_ID_BYTES) & within(wire["schema_version"], 1, SCHEMA_VERSION)
    for name in _NEEDED:
        good &= there(wire[name])
    micros, _ = times(wire["time"], good)
    arrival_us = records["record_time"].to_numpy() * 1000
    good &= micros <= arrival_us + int(max_future_s * 1_000_000)
    items, quotes = _items(wire["items"].chunk(0), good)
    features, more = _features(wire, np.diff(items.offsets.to_numpy()), good)
    context, extra, known = _more(
        wire["raw"], (_plain_quotes(wire) + quotes + more != wire["quotes"].to_numpy()) & good
    )
    good &= known
    columns = {name: wire[name] for name in (*_IDS, "degraded", "feature_names")}
    columns |= {
        "time": pa.array(micros).cast(MICROS),
        "items": items,
        "context": context,
        "extra": extra,
        "schema_version": pc.cast(pc.fill_null(wire["schema_version"], 1), pa.int32(), safe=False),
        "topic": same_text(topic, len(wire)),
        "partition": records["partition"],
        "offset": records["offset"],
        "record_time": pa.array(arrival_us).cast(MICROS),
        "features": features,
    }
    return pa.table([columns[name] for name in IMPRESSION_COLUMNS.names], schema=IMPRESSION_COLUMNS), good


def _items(lists: pa.ListArray, good: Bools) -> tuple[pa.ListArray, NDArray[np.int64]]:
    """The column `items`, and how many quotes it took; rows that are not surely right are struck from `good`."""
    shown, bounds = lists.values, lists.offsets.to_numpy()
    parts = {field.name: pc.struct_field(shown, field.name) for field in SHOWN}
    right = truth(pc.is_valid(shown), False) & truth(pc.is_valid(parts["item_id"]), False)
    length = pc.binary_length(parts["item_id"])
    right &= truth(pc.and_(pc.greater_equal(length, 1), pc.less_equal(length, MAX_ID_BYTES)), False)
    position = parts["position"]
    right &= truth(pc.and_(pc.greater_equal(position, 1), pc.less_equal(position, _MOST)), False)
    right &= truth(pc.is_finite(parts["score"]), True) & truth(pc.is_finite(parts["propensity"]), True)
    named, sources = parts["sources"], parts["sources"].offsets.to_numpy()
    right &= _each(truth(pc.is_valid(named.values), False), sources)
    good &= _each(right, bounds)
    quotes = 4 * np.ones(len(shown), np.int64) + 2 * truth(pc.is_valid(position), False)
    quotes += 2 * truth(pc.is_valid(parts["score"]), False) + 2 * truth(pc.is_valid(parts["propensity"]), False)
    quotes += 2 * truth(pc.is_valid(named), False) + 2 * np.diff(sources)
    columns = [
        parts[field.name] if field.name != "position" else position.cast(pa.int32(), safe=False) for field in SHOWN
    ]
    items = pa.ListArray.from_arrays(lists.offsets, pa.StructArray.from_arrays(columns, fields=list(SHOWN)))
    return items, _sums(quotes, bounds)


def _features(wire: pa.Table, shown: NDArray[np.int64], good: Bools) -> tuple[pa.Array, NDArray[np.int64]]:
    """The column `features`, and the quotes that its names took; rows that are not surely right are struck."""
    rows, names = wire["features"].chunk(0), wire["feature_names"].chunk(0)
    if rows.null_count == len(rows) and names.null_count == len(names):
        return pa.nulls(len(rows), IMPRESSION_COLUMNS.field("features").type), np.zeros(len(rows), np.int64)
    have, bounds = truth(pc.is_valid(rows), False), rows.offsets.to_numpy()
    widths = np.diff(names.offsets.to_numpy())
    values = rows.values.values
    finite = truth(pc.less_equal(pc.abs(values), _LARGEST), False)
    right = truth(pc.is_valid(rows.values), False) & _each(finite, rows.values.offsets.to_numpy())
    right &= np.diff(rows.values.offsets.to_numpy()) == np.repeat(widths, np.diff(bounds))
    both = have & truth(pc.is_valid(names), False) & (np.diff(bounds) == shown)
    both &= _each(right, bounds) & _each(truth(pc.is_valid(names.values), False), names.offsets.to_numpy())
    good &= both | (~have & ~truth(pc.is_valid(names), False))
    inner = pa.ListArray.from_arrays(rows.values.offsets, values.cast(pa.float32(), safe=False))
    made = pa.ListArray.from_arrays(rows.offsets, inner, mask=pa.array(~have))
    return made, np.where(have, 4 + 2 * widths, 0)


def _plain_quotes(wire: pa.Table) -> NDArray[np.int64]:
    """How many quotes the texts and numbers of each message took, and the key `items`."""
    expected = np.full(len(wire), 2, np.int64)
    for name in (*_TEXTS, "schema_version"):
        if wire[name].null_count < len(wire):
            expected += there(wire[name]) * (4 if name in _TEXTS else 2)
    return expected


def _more(raw: pa.ChunkedArray, asked: Bools) -> tuple[pa.Array, pa.Array, Bools]:
    """JSON text of `context` and of all unknown keys of the rows asked for, and which rows are well-formed in that."""
    contexts: list[str | None] = [None] * len(asked)
    extras: list[str | None] = [None] * len(asked)
    known = np.ones(len(asked), np.bool_)
    rows = np.flatnonzero(asked)
    for row, value in zip(rows.tolist(), raw.take(pa.array(rows)).to_pylist(), strict=True):
        try:
            found = orjson.loads(value)
            context = found.get("context")
            extra = {key: value for key, value in found.items() if key not in _KNOWN}
            known[row] = (context is None or isinstance(context, dict)) and found.get("schema_version", 1) is not None
            contexts[row] = orjson.dumps(context).decode() if context else None
            extras[row] = orjson.dumps(extra).decode() if extra else None
        except (orjson.JSONDecodeError, TypeError):
            known[row] = False
    return pa.array(contexts, pa.string()), pa.array(extras, pa.string()), known


def _each(right: Bools, bounds: NDArray[np.int32]) -> Bools:
    """bool (lists,): all entries of a list are right."""
    found: Bools = _sums((~right).astype(np.int64), bounds) == 0
    return found


def _sums(values: NDArray[np.int64], bounds: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 (lists,): sums over the entries of each list."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    found: NDArray[np.int64] = running[bounds[1:]] - running[bounds[:-1]]
    return found
