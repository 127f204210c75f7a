"""One lake snapshot as a training set: Ray Data reads and weighs; arrays in the order that things happened."""

import hashlib
import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from app.errors import MantaError
from app.evaluation.splits import TimeSplit, by_time
from app.event_weights import EventWeights
from app.events.ahead import plausible
from app.events.columns import EVENT_COLUMNS as EVENT_SCHEMA
from app.events.schema import EVENTS, ITEMS, MERGE, REMOVE, USERS
from app.lake.commit import ARRIVAL_TIME
from app.lake.snapshot import Snapshot, snapshot
from app.lake.tables import ARRIVED, open_lake
from app.models.interactions import Catalogue, Interactions
from app.models.unsettled import Unsettled
from app.models.vectors import unit_vectors, vector_size
from app.settings import LearnSettings, Settings
from app.state.history import NOT_IN_HISTORY
from app.time_to_live import in_ms
from app.weighing import Weighed, weigh

BLOCK_BYTES = 64_000_000  # of Parquet that one task reads
# What a training set needs of the lake's events.
EVENT_COLUMNS = ("user_id", "session_id", "item_id", "event_type", "event_time", "value", "partition", "offset")
MOST_TYPES = 256  # of weighted events, to tell them apart
ORDER = [("event_time", "ascending"), ("partition", "ascending"), ("offset", "ascending")]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Everything that a sweep may look at.

    Attributes:
        interactions: weighted events of known items, in (event time, partition, offset) order.
        catalogue: the items of the items table (without one: those of the events).
        available: bool (n_items,), False for items that are withdrawn but stand in histories.
        user_ids: n_users ids.
        sessions: bool (n_users,), whether the id is that of a session which never became a user's.
        snapshot: the lake's snapshots it was read from.
        data_hash: SHA-256 of what models see, so that equal data are known as equal.
        marks: of each event the value that tells its segment; None: not asked for, or told by its item.
    """

    interactions: Interactions
    catalogue: Catalogue
    available: NDArray[np.bool_]
    user_ids: list[str]
    sessions: NDArray[np.bool_]
    snapshot: str
    data_hash: str
    marks: pa.Array | None = None

    def split(self, learn: LearnSettings) -> TimeSplit:
        """fit | ranker slice | validation, by the settings' fractions."""
        return by_time(self.interactions, learn.validation_fraction, learn.ranker_fraction)


def load_training_set(
    settings: Settings,
    home: Path,
    snapshots: str | None = None,
    *,
    event_mark: str | None = None,
    user_mark: str | None = None,
) -> TrainingSet:
    """The lake's events and items as of one snapshot each, read by Ray Data on the connected Ray.

    Args:
        snapshots: `TrainingSet.snapshot` of an earlier reading, to read the very same rows; None: the present ones.
        event_mark: what `marks` has: a column of events (`surface`), or a key in one of their JSON columns
            (`context.device`, `extra.country`).
        user_mark: instead of it a column of users.

    Raises:
        MantaError: there is nothing to learn from.
    """
    lake = open_lake(settings, home)
    events, items = snapshot(lake, EVENTS), snapshot(lake, ITEMS)
    if snapshots is not None:
        named = dict(part.split(":") for part in snapshots.split(","))
        events, items = _as_of(events, named[EVENTS]), _as_of(items, named[ITEMS])
    rows = _read(events, settings.learn.event_weights, event_mark)
    columns = items.read(["item_id", "available", "columns"])
    read = f"{EVENTS}:{events.id},{ITEMS}:{items.id}"
    found = training_set(
        rows,
        columns,
        read,
        weights=settings.learn.event_weights,
        gap_s=settings.learn.session_gap_s,
        ttl_ms=in_ms(settings.state.ttl_days),
        event_mark=event_mark,
    )
    if user_mark is None:
        return found
    users = snapshot(lake, USERS)
    if snapshots is not None:
        users = _as_of(users, named[USERS])
    marked = user_marks(found, users.read(["user_id", "columns"]), user_mark)
    return replace(marked, snapshot=f"{read},{USERS}:{users.id}")


def _as_of(found: Snapshot, named: str) -> Snapshot:
    number = None if named == "None" else int(named)
    if number is not None and found.source.snapshot_by_id(number) is None:
        raise MantaError(f"lake: table {found.table}: found no snapshot {number} any more, wanted one not expired")
    return replace(found, id=number)


def _read(events: Snapshot, weights: EventWeights, mark: str | None) -> pa.Table:
    """The events of all files that matter; filtering happens where Ray Data reads."""
    schema = pa.schema([EVENT_SCHEMA.field(name) for name in _columns(mark)])
    parts = events.files()
    if not parts:
        return schema.empty_table()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    held = dict(weights)

    def read(batch: pa.Table) -> pa.Table:
        return counted(pa.concat_tables([rows_of(file, mark) for file in batch["file"].to_pylist()]), held)

    # Ray Data's own Parquet reader starts a dozen workers for many small files: 40 s for what takes 4.
    files = ray.data.from_items([{"file": part.path} for part in parts])
    tasks = max(int(ray.cluster_resources().get("CPU", 1)), sum(part.bytes for part in parts) // BLOCK_BYTES)
    rows = files.map_batches(
        read, batch_size=math.ceil(len(parts) / tasks), batch_format="pyarrow", concurrency=min(tasks, len(parts))
    )
    found = [table for table in ray.get(rows.to_arrow_refs()) if len(table)]
    return pa.concat_tables(found) if found else schema.empty_table()


def _columns(mark: str | None) -> tuple[str, ...]:
    """`EVENT_COLUMNS`, and the one that the mark is in."""
    held = None if mark is None else mark.partition(".")[0]
    return EVENT_COLUMNS if held is None or held in EVENT_COLUMNS else (*EVENT_COLUMNS, held)


def rows_of(file: str, mark: str | None = None) -> pa.Table:
    """`EVENT_COLUMNS` of a Parquet file of events, but for those of a wrong clock: time is counted from the newest."""
    schema = pa.schema([EVENT_SCHEMA.field(name) for name in _columns(mark)])
    names = [*schema.names, ARRIVAL_TIME]  # null in a file from before the column was there
    found = pq.read_table(file, columns=names, schema=schema.append(ARRIVED))
    return plausible(found, "event_time", ARRIVAL_TIME).select(schema.names).cast(schema)


def counted(events: pa.Table, weights: EventWeights) -> pa.Table:
    """The rows that count in training, by their type; `merge` and `remove` stay, for what they do to others.

    Where a dwell time may have to be told from the next event, everything that ends one stays too.
    """
    kinds = [kind for kind, one in weights.items() if max(one.weight, one.unknown) > 0]
    kept = pc.is_in(events["event_type"], pa.array([*kinds, MERGE, REMOVE], pa.string()))
    if any(weights[kind].of_dwell for kind in kinds):
        passive = pc.is_in(events["event_type"], pa.array(sorted(NOT_IN_HISTORY), pa.string()))
        kept = pc.or_(kept, pc.and_not(pc.is_valid(events["item_id"]), passive))
    return events.filter(kept)


def training_set(
    events: pa.Table,
    items: pa.Table,
    snapshot: str,
    *,
    weights: EventWeights,
    gap_s: float,
    ttl_ms: int | None = None,
    event_mark: str | None = None,
) -> TrainingSet:
    """Arrays from tables.

    Args:
        events: `EVENT_COLUMNS` of `counted` events, any order, duplicates allowed; event_time a timestamp.
        items: `item_id`, `available`, `columns` (JSON text), one row an item.
        snapshot: where they came from.
        weights: by type.
        gap_s: the longest silence within a session, seconds.
        ttl_ms: how long an event stands in a history; None: for ever.
        event_mark: as `load_training_set` has it.

    Raises:
        MantaError: no event that counts.
    """
    events = _once(events.sort_by(ORDER))
    owners, events = _owners(events)
    catalogue, available = _catalogue(items, events)
    rows = pc.index_in(events["item_id"], pa.array(catalogue.item_ids, pa.string()))
    places = np.asarray(pc.fill_null(rows, -1), np.int32)
    times = np.asarray(events["event_time"].cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), np.int64)
    owner = np.asarray(owners.dictionary_encode().indices, np.int64)
    stands = (places >= 0) & ~_removed(events, owner, places, times)
    weighed = _weighed(events, owner, times, weights, gap_s).of(stands)
    kept = np.flatnonzero(weighed.final > 0)
    if not len(kept):
        raise MantaError(
            f"training set: found no event with a weight of an item in the catalogue among {len(events)} events "
            f"and {len(items)} items, wanted at least one (learn.event_weights)"
        )
    types = events["event_type"].take(pa.array(kept)).combine_chunks().dictionary_encode()
    ids = owners.take(pa.array(kept)).dictionary_encode()
    keys = [str(key) for key in ids.dictionary.to_pylist()]
    interactions = Interactions(
        np.asarray(ids.indices, np.int32),
        places[kept],
        weighed.final[kept],
        times[kept],
        len(keys),
        len(catalogue),
        ttl_ms,
        unsettled=Unsettled.of(weighed, owner, places, times, kept),
        kinds=np.asarray(types.indices, np.uint8) if len(types.dictionary) <= MOST_TYPES else None,
        kind_names=tuple(types.dictionary.to_pylist()[:MOST_TYPES]),
    )
    sessions = np.array([key.startswith("s") for key in keys], np.bool_)
    return TrainingSet(
        interactions,
        catalogue,
        available,
        [key[1:] for key in keys],
        sessions,
        snapshot,
        _hash(interactions, catalogue, available),
        None if event_mark is None else _marks(events.take(pa.array(kept)), event_mark),
    )


def _marks(events: pa.Table, mark: str) -> pa.Array:
    """strings: the value of a column, or of a key in a JSON column, of each event."""
    column, _, key = mark.partition(".")
    if not key:
        return pc.cast(events[column], pa.string()).combine_chunks()
    texts = events[column].combine_chunks().dictionary_encode()
    return _values(texts.dictionary.to_pylist(), key).take(texts.indices)


def user_marks(data: TrainingSet, users: pa.Table, column: str) -> TrainingSet:
    """The same with `marks`: of each event its user's value in a column; sessions have none.

    Args:
        users: `user_id`, `columns` (JSON text).
        column: a key of these.
    """
    place = pc.index_in(pa.array(data.user_ids, pa.string()), users["user_id"].combine_chunks())
    own = _values(users["columns"].to_pylist(), column).take(place)
    own = pc.if_else(pa.array(data.sessions), pa.scalar(None, pa.string()), own)
    return replace(data, marks=own.take(pa.array(data.interactions.users)))


def _values(documents: list[str | None], key: str) -> pa.Array:
    """strings: what each JSON text has under a key; null where it has nothing, or no single value."""
    found = [json.loads(text).get(key) if text else None for text in documents]
    single = [str(value) if isinstance(value, str | int | float | bool) else None for value in found]
    return pa.array(single, pa.string())


def _weighed(
    events: pa.Table, owner: NDArray[np.int64], times: NDArray[np.int64], weights: EventWeights, gap_s: float
) -> Weighed:
    """What each of the events, in order, weighs."""
    kinds = events["event_type"].combine_chunks().dictionary_encode()
    values = np.broadcast_to(np.nan, len(events))
    if not all(one.is_plain for one in weights.values()):
        values = np.asarray(pc.fill_null(events["value"], np.nan), np.float64)
    codes = np.asarray(kinds.indices, np.int64)
    return weigh(weights, kinds.dictionary.to_pylist(), codes, values, owner, times, gap_s)


def _once(events: pa.Table) -> pa.Table:
    """Each Kafka record once, of sorted events."""
    if not len(events):
        return events
    partition, offset = (np.asarray(events[name]) for name in ("partition", "offset"))
    fresh = np.ones(len(events), np.bool_)
    fresh[1:] = (np.diff(partition) != 0) | (np.diff(offset) != 0)
    return events if fresh.all() else events.filter(pa.array(fresh))


def _owners(events: pa.Table) -> tuple[pa.Array, pa.Table]:
    """Whose history each event belongs to ("uID", "sID"), and the events without the merges.

    A session's events up to its merge are the user's; an event with both ids is the user's alone.
    """
    users = pc.binary_join_element_wise("u", events["user_id"], "").combine_chunks()
    sessions = pc.binary_join_element_wise("s", events["session_id"], "").combine_chunks()
    owners = pc.coalesce(users, sessions)
    is_merge = pc.equal(events["event_type"], MERGE)
    merges = events.filter(is_merge)
    rest = pc.invert(is_merge).combine_chunks()
    if len(merges):
        merged: dict[str, tuple[Any, str]] = {}  # the first by (event time, user), as in the state
        for session, user, time in zip(
            merges["session_id"].to_pylist(),
            merges["user_id"].to_pylist(),
            merges["event_time"].to_pylist(),
            strict=True,
        ):
            link = (time, f"u{user}")
            merged[f"s{session}"] = min(link, merged.get(f"s{session}", link))
        times = events["event_time"].to_pylist()
        owners = pa.array(
            [
                merged[owner][1] if owner in merged and time <= merged[owner][0] else owner
                for owner, time in zip(owners.to_pylist(), times, strict=True)
            ],
            pa.string(),
        )
    return owners.filter(rest), events.filter(rest)


def _removed(
    events: pa.Table, owner: NDArray[np.int64], places: NDArray[np.int32], times: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which events a later `remove` of the same owner and item takes out of the history."""
    is_remove = np.asarray(pc.equal(events["event_type"], REMOVE))
    if not is_remove.any():
        return is_remove
    pair = owner * (int(places.max(initial=0)) + 2) + places
    last = dict(zip(pair[is_remove].tolist(), times[is_remove].tolist(), strict=True))  # ascending: the newest stays
    until = np.array([last.get(key, -1) for key in pair.tolist()], np.int64)
    return np.asarray(is_remove | (times <= until), np.bool_)


def _catalogue(items: pa.Table, events: pa.Table) -> tuple[Catalogue, NDArray[np.bool_]]:
    """Available items, and withdrawn ones that stand in histories, by id."""
    named = pc.unique(events["item_id"].drop_null())
    if not len(items):
        ids = sorted(named.to_pylist())
        return Catalogue.of(ids), np.ones(len(ids), np.bool_)
    kept = items.filter(pc.or_(items["available"], pc.is_in(items["item_id"], named))).sort_by("item_id")
    columns = item_columns(kept["columns"].to_pylist())
    return Catalogue.of(kept["item_id"].to_pylist(), columns), np.asarray(kept["available"], np.bool_)


def item_columns(documents: list[str | None]) -> pa.Table:
    """JSON texts as one table: strings, lists of strings, numbers, booleans, vectors; absent values are null."""
    rows: list[dict[str, Any]] = [_compact(json.loads(text)) if text else {} for text in documents]
    names = sorted({name for row in rows for name in row} - {"item_id"})
    if not names:
        return pa.table({"_": pa.nulls(len(rows))}).drop_columns(["_"])
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _compact(columns: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers as arrays: a quarter of the memory."""
    return {
        name: np.array(value, np.float64) if isinstance(value, list) and set(map(type, value)) == {float} else value
        for name, value in columns.items()
    }


def _column(values: list[Any]) -> pa.Array:
    vectors = [value for value in values if isinstance(value, np.ndarray)]
    if vectors and all(value is None or isinstance(value, np.ndarray) or value == [] for value in values):
        with np.errstate(over="ignore"):
            exact = all(np.array_equal(vector.astype(np.float32), vector) for vector in vectors)
        return pa.array(values, pa.list_(pa.float32() if exact else pa.float64()))
    values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Two kinds in one column: kept as text, so that neither is lost.
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _hash(interactions: Interactions, catalogue: Catalogue, available: NDArray[np.bool_]) -> str:
    digest = hashlib.sha256()
    for array in (interactions.users, interactions.items, interactions.weights, interactions.times, available):
        digest.update(np.ascontiguousarray(array).tobytes())
    if interactions.unsettled is not None:
        for array in (interactions.unsettled.by, interactions.unsettled.items, interactions.unsettled.weights):
            digest.update(np.ascontiguousarray(array).tobytes())
    if interactions.ttl_ms is not None:
        digest.update(b"%d" % interactions.ttl_ms)
    if interactions.kinds is not None and len(interactions.kind_names) > 1:
        digest.update(interactions.kinds.tobytes() + "\x1f".join(interactions.kind_names).encode())
    columns = catalogue.columns
    vectors = [name for name in columns.column_names if vector_size(columns.column(name))]
    for name in vectors:
        digest.update(unit_vectors(columns.column(name), vector_size(columns.column(name))).tobytes())
    others = columns.drop_columns(vectors).to_pydict()
    digest.update(json.dumps([catalogue.item_ids, vectors, others], default=str).encode())
    return digest.hexdigest()
