"""A folder of data to evaluate on: `train`, `valid`, `items` and `test` as Parquet, read and checked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.errors import MantaError
from app.evaluation.row_weights import RowWeights
from app.models.interactions import Catalogue, Interactions
from app.models.unsettled import Unsettled

TRAIN, VALID, TEST, ITEMS = "train.parquet", "valid.parquet", "test.parquet", "items.parquet"
_IN_MS = 100_000_000_000  # numbers above are milliseconds, below seconds since 1970, as everywhere in Manta
_NONE = -1


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids as numbers, in the order in which they were first met."""

    values: pa.Array
    row_of: dict[object, int]

    @classmethod
    def of(cls, values: pa.Array) -> "Ids":
        return cls(values, {value: row for row, value in enumerate(values.to_pylist())})

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, asked: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """int64 (N,): the number of each id; -1: unknown, or an id of another type."""
        if asked.type != self.values.type and len(asked):
            asked = _as(asked, self.values.type)
        found = pc.index_in(asked, value_set=self.values)
        return np.asarray(pc.fill_null(found, _NONE).to_numpy(zero_copy_only=False), np.int64)


@dataclass(frozen=True, slots=True)
class Held:
    """What is to be found again, one case a row of ragged arrays.

    Attributes:
        users: int64 (C,), the fitted user of each case; -1: none (a session of its own, or a user without fitted rows).
        groups: int64 (C,), what an interval draws together: the user, or the case itself.
        targets: int64 (T,), catalogue rows, -1: not in the catalogue; those of case c are
            `targets[offsets[c]:offsets[c + 1]]`.
        offsets: int64 (C + 1,).
        histories: catalogue rows and offsets of histories that the test itself names; None: those of the fitted users.
        negatives: catalogue rows and offsets of what each target is compared with; None: the whole catalogue.
    """

    users: NDArray[np.int64]
    groups: NDArray[np.int64]
    targets: NDArray[np.int64]
    offsets: NDArray[np.int64]
    histories: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    negatives: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class Folder:
    """What was read: rows to fit on and cases to judge by."""

    fitted: Interactions
    catalogue: Catalogue
    held: Held


def read_folder(path: Path, *, on_valid: bool, weigh: RowWeights | None = None) -> Folder:
    """Train (with valid, where there is one) to fit on and test to judge by; `on_valid`: train, and valid.

    Args:
        path: the folder.
        on_valid: as above.
        weigh: what the fitted rows weigh, those of weight 0 are not fitted on; None: every row weighs 1.

    Raises:
        MantaError: a file is missing or unreadable, a column is missing or of a type that it cannot have, an id is
            null, or there is nothing to fit on or to judge by.
    """
    train = _rows(path / TRAIN, weigh)
    valid = _rows(path / VALID, weigh) if (path / VALID).exists() else None
    if on_valid and valid is None:
        raise MantaError(f"{path}: found no {VALID}, wanted one for --on valid")
    parts = [train] if on_valid or valid is None else [train, valid]
    rows = _concat(parts, path)
    if len(rows) == 0:
        raise MantaError(f"{path / TRAIN}: found no rows, wanted at least one")
    columns = _item_columns(path / ITEMS, rows["item_id"].type)
    listed = [rows["item_id"]] if columns is None else [rows["item_id"], columns["item_id"]]
    items = Ids.of(pc.unique(pa.chunked_array([chunk for ids in listed for chunk in ids.chunks])))
    users = Ids.of(pc.unique(rows["user_id"]))
    held = _held(_table(path / VALID) if on_valid else _table(path / TEST), path, users, items)
    fitted = _interactions(rows, users, items, len(train), weigh)
    if len(fitted) == 0:
        raise MantaError(
            f"{path / TRAIN}: found no row that weighs anything, wanted at least one (learn.event_weights)"
        )
    return Folder(fitted, _catalogue(items, columns), held)


def _interactions(rows: pa.Table, users: Ids, items: Ids, n_train: int, weigh: RowWeights | None) -> Interactions:
    """In the order of time, file order among equals; rows from n_train on came as validation."""
    times = rows["timestamp"].to_numpy()
    order = np.argsort(times, kind="stable")
    owners = users.rows(rows["user_id"])[order].astype(np.int32)
    places = items.rows(rows["item_id"])[order].astype(np.int32)
    times, validation = times[order], order >= n_train
    weights, unsettled = np.ones(len(rows), np.float32), None
    if weigh is not None:
        weighed = weigh.of(rows.take(order), owners.astype(np.int64))
        kept = np.flatnonzero(weighed.final > 0)
        unsettled = Unsettled.of(weighed, owners, places, times, kept)
        weights, owners, places = weighed.final[kept], owners[kept], places[kept]
        times, validation = times[kept], validation[kept]
    return Interactions(
        owners,
        places,
        weights,
        times,
        len(users),
        len(items),
        validation=validation if n_train < len(rows) else None,
        unsettled=unsettled,
    )


def _catalogue(items: Ids, columns: pa.Table | None) -> Catalogue:
    names = [str(value) for value in items.values.to_pylist()]
    if columns is None:
        return Catalogue.of(names)
    places = pc.index_in(items.values, value_set=columns["item_id"].combine_chunks())
    return Catalogue.of(names, columns.drop_columns(["item_id"]).take(places))


# --- what is held out


def _held(test: pa.Table, path: Path, users: Ids, items: Ids) -> Held:
    if len(test) == 0:
        raise MantaError(f"{path}: found nothing to judge by: the test has no rows")
    names = set(test.column_names)
    if {"history", "target"} <= names:
        return _of_sessions(test, items)
    if {"user_id", "target", "negatives"} <= names:
        return _of_samples(test, users, items)
    if {"user_id", "item_id"} <= names:
        return _of_rows(test, users, items)
    raise MantaError(
        f"{path / TEST}: found the columns {', '.join(test.column_names)}, wanted user_id and item_id, "
        "or history and target, or user_id, target and negatives"
    )


def _of_rows(test: pa.Table, users: Ids, items: Ids) -> Held:
    """One case a user: the set of the items held out for him, in the file's order of users."""
    _no_nulls(test, ("user_id", "item_id"), TEST)
    named = Ids.of(pc.unique(test["user_id"]))
    owner, targets = named.rows(test["user_id"]), items.rows(test["item_id"])
    # Items outside the catalogue keep apart from each other: each is a miss of its own, a repeated one counts once.
    distinct = pc.index_in(test["item_id"], value_set=pc.unique(test["item_id"])).to_numpy(zero_copy_only=False)
    _, first = np.unique(np.stack([owner, distinct]), axis=1, return_index=True)
    kept = first[np.argsort(owner[first], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(named)))])
    return Held(users.rows(named.values), np.arange(len(named)), targets[kept], offsets.astype(np.int64))


def _of_sessions(test: pa.Table, items: Ids) -> Held:
    """One case a row: the next item of a history that the row names."""
    _no_nulls(test, ("history", "target"), TEST)
    n = len(test)
    cases = np.arange(n, dtype=np.int64)
    targets = items.rows(test["target"])
    histories = _ragged(test["history"], items, "history")
    return Held(np.full(n, _NONE, np.int64), cases, targets, np.arange(n + 1, dtype=np.int64), histories)


def _of_samples(test: pa.Table, users: Ids, items: Ids) -> Held:
    """One case a row: a target among its negatives."""
    _no_nulls(test, ("user_id", "target", "negatives"), TEST)
    n = len(test)
    named = Ids.of(pc.unique(test["user_id"]))
    negatives = _ragged(test["negatives"], items, "negatives", keep_unknown=True)
    return Held(
        users.rows(test["user_id"]),
        named.rows(test["user_id"]),
        items.rows(test["target"]),
        np.arange(n + 1, dtype=np.int64),
        negatives=negatives,
    )


def _ragged(
    lists: pa.ChunkedArray, items: Ids, name: str, *, keep_unknown: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Catalogue rows and offsets of a column of lists; ids outside the catalogue are left out, or -1."""
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        raise MantaError(f"{TEST}: {name}: found {lists.type}, wanted a list of ids")
    whole = lists.combine_chunks()
    rows = items.rows(whole.flatten())
    lengths = np.asarray(pc.list_value_length(whole).to_numpy(zero_copy_only=False), np.int64)
    if not keep_unknown:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        known = rows >= 0
        rows, lengths = rows[known], np.bincount(owner[known], minlength=len(lengths))
    return rows, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


# --- files


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise MantaError(f"{path}: found no such file, wanted Parquet") from None
    except (OSError, pa.ArrowException) as error:
        raise MantaError(f"{path}: {str(error).splitlines()[0]}; wanted readable Parquet") from None


def _rows(path: Path, weigh: RowWeights | None) -> pa.Table:
    """`user_id, item_id, timestamp` (int64, milliseconds; the file's order where it has none), and what is weighed."""
    table = _table(path)
    _has(table, ("user_id", "item_id"), path)
    for name in ("user_id", "item_id"):
        kind = table[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise MantaError(f"{path}: {name}: found {kind}, wanted int64 or string")
    _no_nulls(table, ("user_id", "item_id"), path)
    columns = [_plain(table["user_id"]), _plain(table["item_id"]), _times(table, path)]
    rows = pa.table(columns, names=["user_id", "item_id", "timestamp"])
    return rows if weigh is None else weigh.with_columns(rows, table, path)


def _times(table: pa.Table, path: Path) -> pa.ChunkedArray:
    if "timestamp" not in table.column_names:
        return pa.chunked_array([pa.array(np.arange(len(table), dtype=np.int64))])
    column = table["timestamp"]
    if column.null_count:
        raise MantaError(f"{path}: timestamp: found {column.null_count} nulls, wanted none")
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise MantaError(f"{path}: timestamp: found {column.type}, wanted a number or a timestamp")
    values = column.to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise MantaError(f"{path}: timestamp: found NaN or infinity, wanted finite numbers")
    if np.abs(values).max(initial=0) < _IN_MS:
        values = values * 1000
    return pa.chunked_array([pa.array(values.astype(np.int64))])


def _item_columns(path: Path, kind: pa.DataType) -> pa.Table | None:
    if not path.exists():
        return None
    table = _table(path)
    _has(table, ("item_id",), path)
    _no_nulls(table, ("item_id",), path)
    ids = _as(_plain(table["item_id"]), kind)
    if len(pc.unique(ids)) != len(ids):
        raise MantaError(f"{path}: item_id: found {len(ids) - len(pc.unique(ids))} that repeat, wanted each once")
    return table.set_column(table.column_names.index("item_id"), "item_id", ids)


def _concat(parts: list[pa.Table], path: Path) -> pa.Table:
    try:
        return pa.concat_tables(parts)
    except pa.ArrowInvalid:
        found = " and ".join(str([str(field.type) for field in part.schema]) for part in parts)
        raise MantaError(f"{path}: {TRAIN} and {VALID} differ: found {found}, wanted the same types") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as int64 or string."""
    return column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.string())


def _as(ids: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Ids as another file's type; one that cannot be becomes null."""
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid:
        return pa.nulls(len(ids), kind)


def _has(table: pa.Table, names: tuple[str, ...], path: Path) -> None:
    if missing := [name for name in names if name not in table.column_names]:
        raise MantaError(
            f"{path}: found the columns {', '.join(table.column_names)}, wanted {', '.join(missing)} as well"
        )


def _no_nulls(table: pa.Table, names: tuple[str, ...], path: Path | str) -> None:
    for name in names:
        if table[name].null_count:
            raise MantaError(f"{path}: {name}: found {table[name].null_count} nulls, wanted none")
