"""Rows of a source as events, items or users: read in pieces, checked by the one rule set, what is refused named."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa

from app.erasure.erased import Erased, ErasedNow, Mask, nobody
from app.errors import MantaError
from app.events.columns import RECORDS, decode
from app.events.import_columns import columns_of, event_values, id_text, plain, rows_of
from app.events.import_csv import Unreadable
from app.events.import_sources import Rows, Source
from app.events.schema import EVENTS, ITEMS, USERS, ColumnValue, EventRejected, validate_item, validate_user
from app.settings import EventSettings

ERASED = "erased"
_WHY_ERASED = "found a user who was erased after this, wanted others"
_SHOWN = 20
Entity = tuple[str, dict[str, ColumnValue]]  # id, columns


@dataclass(frozen=True, slots=True)
class CheckedEvents:
    """Some events of a source, all of them right.

    Attributes:
        events: `columns.EVENT_COLUMNS`; topic, partition, offset and key say nothing.
        values: binary, the message of each.
    """

    events: pa.Table
    values: pa.Array


class RowReader:
    """Reads a source once; `with` closes the file of refusals.

    Args:
        source: where the rows are.
        kind: `events`, `items` or `users`.
        column_map: name there to name here; others keep theirs.
        settings: `settings.events`.
        refused_file: gets every refused row as JSON lines `{"row", "reason", "detail"}`.
        progress: called with the number of rows read so far.
        erased: who was erased: what is about them, and from before, is refused (`from_before`, `is_erased`).

    Raises:
        MantaError: another kind.
    """

    def __init__(
        self,
        source: Source,
        kind: str,
        column_map: Mapping[str, str],
        settings: EventSettings,
        *,
        refused_file: Path | None = None,
        progress: Callable[[int], None] | None = None,
        erased: ErasedNow = nobody,
    ) -> None:
        if kind not in (EVENTS, ITEMS, USERS):
            raise MantaError(f"import: kind {kind!r}, wanted events, items or users")
        self._source, self._kind, self._column_map, self._settings = source, kind, column_map, settings
        self._progress, self._erased = progress, erased
        self._started = time.monotonic()
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._first: list[dict[str, Any]] = []
        self._stream = refused_file.open("wb") if refused_file is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def events(self) -> Iterator[CheckedEvents]:
        """The rows that are events, in their order.

        Raises:
            MantaError: the source cannot be read.
        """
        for rows in self._source.batches(self._column_map):
            bad = _unreadable(rows)
            if not isinstance(rows, pa.Table):
                rows = columns_of([{} if isinstance(row, Unreadable) else row for row in rows])
            values = event_values(self._renamed(rows), self._rows if self._source.ordered else None)
            yield self._checked(values, bad)
            self._count(len(values))

    def entities(self) -> Iterator[list[Entity]]:
        """The rows that are items or users, in their order, some at a time.

        Raises:
            MantaError: the source cannot be read.
        """
        id_field, validate = ("item_id", validate_item) if self._kind == ITEMS else ("user_id", validate_user)
        for rows in self._source.batches(self._column_map):
            found = rows_of(rows) if isinstance(rows, pa.Table) else rows
            right: list[Entity] = []
            erased = self._erased()
            for place, row in enumerate(found):
                if isinstance(row, Unreadable):
                    self._refuse(place, *row)
                    continue
                columns = {self._column_map.get(name, name): plain(cell) for name, cell in row.items() if _there(cell)}
                try:
                    entity = validate(id_text(columns.pop(id_field, None)), columns)
                except EventRejected as error:
                    self._refuse(place, error.code, error.message)
                    continue
                if is_erased(self._kind, entity[0], erased):
                    self._refuse(place, ERASED, _WHY_ERASED)
                else:
                    right.append(entity)
            yield right
            self._count(len(found))

    def report(self, *, dry_run: bool = False) -> dict[str, Any]:
        """`{"kind", "rows", "sent", "refused", "reasons": {code: n}, "first_refused": [{"row", "reason", "detail"}],
        "dry_run", "seconds"}` of what was read; rows count from 1, `sent` are those that passed.
        """
        refused = self._reasons.total()
        return {
            "kind": self._kind,
            "rows": self._rows,
            "sent": self._rows - refused,
            "refused": refused,
            "reasons": dict(self._reasons),
            "first_refused": self._first,
            "dry_run": dry_run,
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def _renamed(self, rows: pa.Table) -> pa.Table:
        names = [self._column_map.get(name, name) for name in rows.column_names]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise MantaError(f"import: found two columns named {twice[0]!r}, wanted one: name them by --column FROM=TO")
        return rows.rename_columns(names)

    def _checked(self, values: pa.Array, bad: Mapping[int, Unreadable]) -> CheckedEvents:
        count, now = len(values), int(time.time() * 1000)
        columns = [
            pa.array(np.zeros(count, np.int32)),
            pa.array(np.arange(count, dtype=np.int64)),
            pa.array(np.full(count, now, np.int64)),
            pa.nulls(count, pa.binary()),
            values,
        ]
        decoded = decode(EVENTS, pa.Table.from_arrays(columns, schema=RECORDS), self._settings)
        for row in decoded.rejected.select(["offset", "reason", "detail"]).to_pylist():
            self._refuse(row["offset"], *bad.get(row["offset"], (row["reason"], row["detail"])))
        events = decoded.events
        if (gone := from_before(events, self._erased())).any():
            for place in events.filter(pa.array(gone))["offset"].to_pylist():
                self._refuse(place, ERASED, _WHY_ERASED)
            events = events.filter(pa.array(~gone))
        right = values if len(events) == count else values.take(events["offset"].combine_chunks())
        return CheckedEvents(events, right)

    def _count(self, rows: int) -> None:
        self._rows += rows
        if self._progress is not None:
            self._progress(self._rows)

    def _refuse(self, place: int, reason: str, detail: str) -> None:
        """`place`: of the row in its piece."""
        self._reasons[reason] += 1
        refusal = {"row": self._rows + place + 1, "reason": reason, "detail": detail}
        if len(self._first) < _SHOWN:
            self._first.append(refusal)
        if self._stream is not None:
            self._stream.write(orjson.dumps(refusal) + b"\n")


def from_before(events: pa.Table, erased: Erased) -> Mask:
    """bool (n,): events of a source (`CheckedEvents`) about somebody who was erased after they happened.

    Without a time of its own nobody knows when one happened: then before.
    """
    times = events["event_time"].cast(pa.int64()).to_numpy()
    untimed = times == events["record_time"].cast(pa.int64()).to_numpy()
    return erased.imports(events["user_id"], events["session_id"], np.where(untimed, -1, times // 1000))


def is_erased(kind: str, name: str, erased: Erased) -> bool:
    """Whether columns are of a user who was erased: those of a source are from before, whenever it is read."""
    return kind == USERS and bool(erased.boundaries("user", name))


def _unreadable(rows: Rows) -> dict[int, Unreadable]:
    """Place to what is no row."""
    if isinstance(rows, pa.Table):
        return {}
    return {place: row for place, row in enumerate(rows) if isinstance(row, Unreadable)}


def _there(cell: Any) -> bool:
    """Neither null nor NaN, which stands for null in many files."""
    return cell is not None and bool(cell == cell)
