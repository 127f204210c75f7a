"""Messages of the compacted topics `items` and `users` as columns: the latest version of each id."""

import time
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.events.columns import MICROS, REJECTED, Decoded
from app.events.json_columns import same_text
from app.events.rows import rejection
from app.events.schema import (
    ITEMS,
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    SCHEMA_VERSION,
    USERS,
    EventRejected,
    read_columns,
)
from app.events.versions import VersionPlace, stays

ID_FIELDS = {ITEMS: "item_id", USERS: "user_id"}
_AT_ONCE = 10_000  # messages that are Python objects at a time
_PLAIN_NUMBER = 2**63
_FAR = 1e300


def _table(id_field: str) -> pa.Schema:
    """One row an id. `columns` is JSON; of a withdrawn id its last columns, if any."""
    return pa.schema(
        [
            (id_field, pa.string()),
            ("available", pa.bool_()),
            ("columns", pa.string()),
            ("topic", pa.string()),
            ("partition", pa.int32()),
            ("offset", pa.int64()),
            ("record_time", MICROS),
        ]
    )


ENTITY_COLUMNS = {topic: _table(id_field) for topic, id_field in ID_FIELDS.items()}


def decode_entities(topic: str, records: pa.Table) -> Decoded:
    """Checks the messages of `items` or `users`; every version is a row, a withdrawal has `columns` null.

    Args:
        topic: `items` or `users`.
        records: `columns.RECORDS`.
    """
    id_field = ID_FIELDS[topic]
    rejected = [REJECTED.empty_table()]
    names: list[str] = []
    columns: list[bytes | None] = []
    places: list[int] = []  # of the accepted among the records
    for start in range(0, len(records), _AT_ONCE):
        some = records.slice(start, _AT_ONCE)
        wrong: list[dict[str, Any]] = []
        for place, (key, value) in enumerate(zip(some["key"].to_pylist(), some["value"].to_pylist(), strict=True)):
            try:
                name, text = version_of(key, value or b"", id_field)
            except EventRejected as error:
                wrong.append(rejection(topic, some.slice(place, 1).to_pylist()[0], error))
                continue
            names.append(name)
            columns.append(text)
            places.append(start + place)
        rejected.append(pa.Table.from_pylist(wrong, REJECTED))
    stood = records if len(places) == len(records) else records.take(pa.array(places, pa.int64()))
    texts = pa.array(columns, pa.binary()).cast(pa.string())
    accepted = [
        pa.array(names, pa.string()),
        texts.is_valid(),
        texts,
        same_text(topic, len(names)),
        stood["partition"],
        stood["offset"],
        pc.multiply(stood["record_time"], 1000).cast(MICROS),
    ]
    return Decoded(pa.table(accepted, schema=ENTITY_COLUMNS[topic]), pa.concat_tables(rejected))


def version_of(key: bytes | None, value: bytes, id_field: str) -> tuple[str, bytes | None]:
    """(id, columns as JSON) of a message; None: withdrawn.

    What is plainly right is not looked at a second time: half of what `read_columns` costs.

    Raises:
        EventRejected: as `schema.read_columns`.
    """
    try:
        raw = orjson.loads(value)
        name = (key or b"").decode()
    except ValueError:
        raw, name = None, ""
    if type(raw) is dict and 0 < len(name) <= MAX_ID_BYTES // 4 and len(value) <= MAX_MESSAGE_BYTES // 4:
        if raw.get("schema_version") == SCHEMA_VERSION and type(raw["schema_version"]) is int:
            del raw["schema_version"]
        if id_field not in raw and "schema_version" not in raw and _is_plain(raw):
            return name, orjson.dumps(raw)
    name, columns = read_columns(key, value, id_field)
    return name, None if columns is None else orjson.dumps(columns)


def _is_plain(raw: dict[str, Any]) -> bool:
    """Whether it surely holds columns as they are stored."""
    for name, value in raw.items():
        if not 0 < len(name) <= MAX_ID_BYTES // 4:  # whatever its characters
            return False
        kind = type(value)
        if kind is str or kind is bool or value is None:
            continue
        if kind is int or kind is float:
            if not -_PLAIN_NUMBER < value < _PLAIN_NUMBER:
                return False
        elif kind is not list or not _is_plain_list(value):
            return False
    return True


def _is_plain_list(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    if kinds == {float}:  # a vector
        return bool(min(values) > -_FAR and max(values) < _FAR)
    return not kinds - {str}


def latest_versions(topic: str, stood: pa.Table, changes: pa.Table) -> pa.Table:
    """The table after the changes: one row an id; a withdrawn item keeps the columns that it had last, a user none.

    Where partitions were added an id may have versions in two (`app.events.versions`).

    Args:
        topic: `items` or `users`.
        stood: ENTITY_COLUMNS of the topic, one row an id.
        changes: the same, any number of versions; within a partition in offset order.
    """
    id_field = ID_FIELDS[topic]
    touched = pc.is_in(stood[id_field], value_set=changes[id_field].combine_chunks())
    versions = pa.concat_tables([stood.filter(touched), changes]).combine_chunks()
    return pa.concat_tables([stood.filter(pc.invert(touched)), latest_of(topic, versions)])


def latest_of(topic: str, versions: pa.Table) -> pa.Table:
    """One row an id: the latest of its versions (ENTITY_COLUMNS, those of a partition in offset order)."""
    ids = versions[ID_FIELDS[topic]].combine_chunks()
    codes = pc.dictionary_encode(ids).indices.to_numpy().astype(np.int64) if len(ids) else np.zeros(0, np.int64)
    partitions = versions["partition"].to_numpy()
    rows = np.arange(len(codes))
    last = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    last[codes] = rows  # of several the last one stays
    several = np.zeros(len(last), np.bool_)
    several[codes[partitions != partitions[last[codes]]]] = True
    found = versions.take(pa.array(last[~several]))
    if topic == ITEMS:
        known = last.copy()  # where the columns are: a withdrawal has none
        there = versions["columns"].is_valid().to_numpy()
        known[codes[there]] = rows[there]
        columns = versions["columns"].take(pa.array(known[~several]))
        found = found.set_column(found.schema.get_field_index("columns"), "columns", columns)
    if not several.any():
        return found
    mixed = versions.filter(pa.array(several[codes]))
    return pa.concat_tables([found, _latest_of_several_partitions(topic, mixed)])


def _latest_of_several_partitions(topic: str, versions: pa.Table) -> pa.Table:
    """As `latest_of`, one by one: few ids have versions in more than one partition."""
    id_field, now = ID_FIELDS[topic], int(time.time() * 1000)
    rows: dict[str, dict[str, Any]] = {}
    for row in versions.to_pylist():
        last, before = row, rows.get(row[id_field])
        if before is not None:
            last, other = (before, row) if stays(_place(before), _place(row), now) else (row, before)
            if topic == ITEMS and last["columns"] is None:
                last["columns"] = other["columns"]
        rows[row[id_field]] = last
    return pa.Table.from_pylist(list(rows.values()), ENTITY_COLUMNS[topic])


def _place(row: dict[str, Any]) -> VersionPlace:
    arrived = row["record_time"]
    return VersionPlace(row["partition"], 0 if arrived is None else int(arrived.timestamp() * 1000))
