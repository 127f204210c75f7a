"""The bundle's items as they stand now: withdrawn ones marked, new ones appended, changed ones overridden."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Catalogue, Rows

# Called with the rows that came or changed and their columns, for arrays kept beside the catalogue.
Follower = Callable[[Sequence[int], Sequence[Mapping[str, Any]]], None]


class Change(Protocol):
    """An item put or withdrawn, as the state tells it (`app.state.reader.ItemChange`)."""

    @property
    def sequence(self) -> int: ...
    @property
    def item_id(self) -> str: ...
    @property
    def available(self) -> bool: ...
    @property
    def columns(self) -> dict[str, Any]: ...


class LiveCatalogue:
    """Rows 0 to n_items - 1 are the bundle's; items that came later follow. A row never moves.

    Owned by the event loop: changes are applied between two steps of a chain, never beside one. A withdrawal shows at
    once in `available`, which running chains look at last.

    Attributes:
        catalogue: the bundle's.
        n_items: the bundle's number of rows.
        item_ids, row_of: of all live rows.
        column_names: every column that any item has.
        changed: rows whose columns came or changed, in the order of the changes; only grows.
        sequence: the last change applied.
        revision: moves with every change that had an effect.
    """

    def __init__(self, catalogue: Catalogue, available: NDArray[np.bool_] | None = None) -> None:
        self.catalogue = catalogue
        self.n_items = len(catalogue)
        self.item_ids = list(catalogue.item_ids)
        self.row_of = dict(catalogue.row_of)
        self.column_names = set(catalogue.columns.column_names)
        self.changed: list[int] = []
        self.sequence = 0
        self.revision = 0
        self._available = np.ones(self.n_items, np.bool_) if available is None else available.copy()
        self._withdrawn: Rows | None = None
        self._own: dict[int, dict[str, Any]] = {}  # columns that differ from the bundle's, or of new rows
        self._followers: list[Follower] = []

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def available(self) -> NDArray[np.bool_]:
        """bool (len(self),): not withdrawn. A view: it shows later withdrawals too."""
        return self._available[: len(self.item_ids)]

    @property
    def withdrawn(self) -> Rows:
        """int32, rising: the rows that are not available."""
        if self._withdrawn is None:
            self._withdrawn = np.flatnonzero(~self.available).astype(np.int32)
        return self._withdrawn

    def follow(self, follower: Follower) -> None:
        """Calls `follower` for what has changed so far, then at each change."""
        self._followers.append(follower)
        rows = sorted(self._own)
        if rows:
            follower(rows, [self._own[row] for row in rows])

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """int32: the rows of the ids that are known, in their order."""
        found = [row for row in map(self.row_of.get, item_ids) if row is not None]
        return np.array(found, np.int32)

    def columns_of(self, row: int) -> dict[str, Any]:
        """The columns of a row, without those that are null."""
        own = self._own.get(row)
        if own is not None:
            return own
        return _present(_records(self.catalogue.columns.slice(row, 1), 1)[0])

    def apply(self, changes: Sequence[Change]) -> bool:
        """Applies changes in the order of their sequence; those at or below `sequence` count as applied.

        Returns:
            Whether anything differs from before.
        """
        latest = {change.item_id: change for change in changes if change.sequence > self.sequence}
        if not latest:
            return False
        self.sequence = max(change.sequence for change in latest.values())
        bundled = self._bundled([self.row_of[item] for item in latest if item in self.row_of])
        touched: list[int] = []
        moved = False
        for change in latest.values():
            row = self.row_of.get(change.item_id)
            if row is None:
                row = self._append(change.item_id)
                before = None
            else:
                before = self._own.get(row, bundled.get(row))
            if bool(self._available[row]) != change.available:
                self._available[row] = change.available
                self._withdrawn = None
                moved = True
            columns = _present(change.columns)
            if columns != before and (change.available or before is None):
                self._own[row] = columns
                self.column_names.update(columns)
                touched.append(row)
        if touched:
            self.changed.extend(touched)
            for follower in self._followers:
                follower(touched, [self._own[row] for row in touched])
        self.revision += bool(touched) or moved
        return bool(touched) or moved

    def _bundled(self, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The bundle's columns of rows that nothing has overridden yet."""
        wanted = [row for row in rows if row < self.n_items and row not in self._own]
        table = self.catalogue.columns.take(wanted) if wanted else None
        return {} if table is None else dict(zip(wanted, map(_present, _records(table, len(wanted))), strict=True))

    def _append(self, item_id: str) -> int:
        row = len(self.item_ids)
        if row >= len(self._available):
            grown = np.zeros(row + row // 4 + 64, np.bool_)
            grown[:row] = self._available
            self._available = grown
        self.item_ids.append(item_id)
        self.row_of[item_id] = row
        return row


def _records(table: Any, count: int) -> list[dict[str, Any]]:
    """The rows of an Arrow table; one without columns has as many empty rows."""
    return table.to_pylist() if table.num_columns else [{} for _ in range(count)]


def _present(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}
