"""Messages of the compacted topics `items` and `users` as columns: the latest version of each id."""

import time
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.events.columns import MICROS, REJECTED, Decoded
from app.events.rows import rejection
from app.events.schema import ITEMS, USERS, EventRejected, read_columns
from app.events.versions import VersionPlace, stays

ID_FIELDS = {ITEMS: "item_id", USERS: "user_id"}


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
    accepted: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for record in records.to_pylist():
        try:
            name, columns = read_columns(record["key"], record["value"] or b"", id_field)
        except EventRejected as error:
            rejected.append(rejection(topic, record, error))
            continue
        row = {id_field: name, "available": columns is not None, "topic": topic}
        row["columns"] = None if columns is None else orjson.dumps(columns).decode()
        row |= {"partition": record["partition"], "offset": record["offset"]}
        accepted.append(row | {"record_time": record["record_time"] * 1000})
    return Decoded(pa.Table.from_pylist(accepted, ENTITY_COLUMNS[topic]), pa.Table.from_pylist(rejected, REJECTED))


def latest_versions(topic: str, stood: pa.Table, changes: pa.Table) -> pa.Table:
    """The table after the changes: one row an id; a withdrawn item keeps the columns that it had last, a user none.

    Where partitions were added an id may have versions in two: of those the one that arrived last stands.

    Args:
        topic: `items` or `users`.
        stood: ENTITY_COLUMNS of the topic, one row an id.
        changes: the same, any number of versions; within a partition in offset order.
    """
    id_field, now = ID_FIELDS[topic], int(time.time() * 1000)
    touched = pc.is_in(stood[id_field], value_set=changes[id_field].combine_chunks())
    rows: dict[str, dict[str, Any]] = {row[id_field]: row for row in stood.filter(touched).to_pylist()}
    for row in changes.to_pylist():
        last, before = row, rows.get(row[id_field])
        if before is not None:
            last, other = (before, row) if stays(_place(before), _place(row), now) else (row, before)
            if topic == ITEMS and last["columns"] is None:
                last["columns"] = other["columns"]
        rows[row[id_field]] = last
    changed = pa.Table.from_pylist(list(rows.values()), ENTITY_COLUMNS[topic])
    return pa.concat_tables([stood.filter(pc.invert(touched)), changed])


def _place(row: dict[str, Any]) -> VersionPlace:
    arrived = row["record_time"]
    return VersionPlace(row["partition"], 0 if arrived is None else int(arrived.timestamp() * 1000))
