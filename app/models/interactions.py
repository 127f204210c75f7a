"""The arrays that models see: interactions to fit on, histories to answer, the catalogue they speak of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.models.unsettled import Unsettled
from app.time_to_live import oldest_counted

Rows = NDArray[np.int32]
Times = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items a bundle or a training set speaks of; a row number stands for an item in every array.

    Attributes:
        item_ids: n_items distinct ids; the position is the row.
        columns: n_items rows, the item columns (without `item_id`); list columns are `list<string>`.
        row_of: id to row.
    """

    item_ids: list[str]
    columns: pa.Table
    row_of: dict[str, int] = field(repr=False)

    @classmethod
    def of(cls, item_ids: Sequence[str], columns: pa.Table | None = None) -> "Catalogue":
        ids = list(item_ids)
        table = columns if columns is not None else pa.table({"_": pa.nulls(len(ids))}).drop_columns(["_"])
        return cls(ids, table, {item: row for row, item in enumerate(ids)})

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True)
class Histories:
    """A ragged batch of B histories, each oldest first.

    Attributes:
        items: int32 (N,), catalogue rows. Rows >= a model's n_items are unknown to it: it ignores them.
        weights: float32 (N,), > 0, the surface's or the training view's weight of each event.
        times: int64 (N,), event time in milliseconds since 1970.
        offsets: int64 (B + 1,), history b is `items[offsets[b]:offsets[b + 1]]`.
        as_of: int64 (B,), the time that decay counts from, milliseconds.
    """

    items: Rows
    weights: Weights
    times: Times
    offsets: NDArray[np.int64]
    as_of: Times

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def owner(self) -> NDArray[np.int64]:
        """int64 (N,): the history each entry belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def last(self, limit: int) -> "Histories":
        """Only the newest `limit` entries of each history."""
        starts = np.maximum(self.offsets[:-1], self.offsets[1:] - limit)
        return self.gather(starts, self.offsets[1:], self.as_of)

    def slice(self, start: int, end: int) -> "Histories":
        """Histories start to end - 1."""
        first, last = self.offsets[start], self.offsets[end]
        return Histories(
            self.items[first:last],
            self.weights[first:last],
            self.times[first:last],
            self.offsets[start : end + 1] - first,
            self.as_of[start:end],
        )

    def gather(self, starts: NDArray[np.int64], ends: NDArray[np.int64], as_of: Times) -> "Histories":
        lengths = ends - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Histories(self.items[index], self.weights[index], self.times[index], offsets, as_of)

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]], as_of: int = 0) -> "Histories":
        """Histories of plain row lists, weight 1, times counting up to `as_of`."""
        lengths = [len(rows) for rows in lists]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = np.array([row for rows in lists for row in rows], dtype=np.int32)
        ahead = np.array([length - place for length in lengths for place in range(length)], dtype=np.int64)
        return cls(items, np.ones(len(items), np.float32), as_of - ahead, offsets, np.full(len(lists), as_of, np.int64))


@dataclass(frozen=True, slots=True)
class Interactions:
    """Events to fit on, in (time, file) order.

    Attributes:
        users: int32 (N,), 0 <= user < n_users.
        items: int32 (N,), catalogue rows.
        weights: float32 (N,), > 0.
        times: int64 (N,), milliseconds, ascending.
        n_users, n_items: sizes; an item without an event is a row all the same.
        ttl_ms: how long an event stands in a history (`app.time_to_live`); models are fitted on all of them.
        validation: bool (N,), the events that came as validation, for families that choose on such; None: not said.
        kinds: uint8 (N,), the type of each event, a place in `kind_names`; None: not said.
        unsettled: entries that weighed something else until the next event came; None: none did.
    """

    users: Rows
    items: Rows
    weights: Weights
    times: Times
    n_users: int
    n_items: int
    ttl_ms: int | None = None
    validation: NDArray[np.bool_] | None = None
    unsettled: Unsettled | None = None
    kinds: NDArray[np.uint8] | None = None
    kind_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def end(self) -> int:
        """The as-of time after the last event, milliseconds."""
        return int(self.times[-1]) + 1 if len(self) else 0

    def before(self, time: int) -> "Interactions":
        """The events with a time below `time`."""
        return self.first(int(np.searchsorted(self.times, time, side="left")))

    def first(self, n: int) -> "Interactions":
        """The oldest n events; users and items keep their rows."""
        return self.some(slice(n))

    def some(self, kept: slice | NDArray[np.bool_]) -> "Interactions":
        """Some of the events; users and items keep their rows."""
        validation = None if self.validation is None else self.validation[kept]
        weights, unsettled = self.weights, self.unsettled
        if unsettled is not None:
            mask = np.zeros(len(self), np.bool_)
            mask[kept] = True
            weights, unsettled = unsettled.undone(weights, mask), unsettled.some(mask)
        users, items, times = self.users[kept], self.items[kept], self.times[kept]
        return replace(
            self,
            users=users,
            items=items,
            weights=weights[kept],
            times=times,
            validation=validation,
            kinds=None if self.kinds is None else self.kinds[kept],
            unsettled=unsettled if unsettled is not None and len(unsettled.by) else None,
        )

    def translated(self, rows: NDArray[np.int32], n_items: int) -> "Interactions":
        """The same events in the rows of another catalogue: int32 (n_items of this one,), each >= 0."""
        unsettled = None if self.unsettled is None else self.unsettled.relabelled(rows)
        return replace(self, items=rows[self.items], n_items=n_items, unsettled=unsettled)

    def histories(self) -> Histories:
        """One history per user (n_users of them), as of the end."""
        whole, order = self._by_user()
        as_of = np.full(self.n_users, self.end, np.int64)
        starts = self._counted(np.arange(self.n_users), whole, order, as_of)
        return whole.gather(starts, whole.offsets[1:], as_of)

    def histories_before(self, cases: NDArray[np.int64]) -> Histories:
        """For each case (a position in these events) the user's history before that very event, as of its time."""
        return next(self.batches_before(cases, max(len(cases), 1)), Histories.of_lists([]))

    def batches_before(self, cases: NDArray[np.int64], batch: int) -> Iterator[Histories]:
        """`histories_before` of `batch` cases after the other: the events are sorted by user once."""
        whole, order = self._by_user()
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        for start in range(0, len(cases), batch):
            some = cases[start : start + batch]
            as_of = self.times[some]
            found = whole.gather(self._counted(self.users[some], whole, order, as_of), place[some], as_of)
            yield self._as_known(found, some)

    def _as_known(self, histories: Histories, cases: NDArray[np.int64]) -> Histories:
        """The histories before cases with the weights as they were known then."""
        if self.unsettled is None:
            return histories
        oldest = None if self.ttl_ms is None else oldest_counted(histories.as_of, self.ttl_ms)
        found = (histories.items, histories.weights, histories.times, histories.offsets)
        return Histories(*self.unsettled.restored(found, cases, oldest), histories.as_of)

    def _by_user(self) -> tuple[Histories, NDArray[np.int64]]:
        """Every user's events, and where each stands in these."""
        order = np.argsort(self.users, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(self.users, minlength=self.n_users))]).astype(np.int64)
        nowhen = np.zeros(self.n_users, np.int64)
        return Histories(self.items[order], self.weights[order], self.times[order], first, nowhen), order

    def _counted(
        self, users: NDArray[np.integer[Any]], whole: Histories, order: NDArray[np.int64], as_of: Times
    ) -> NDArray[np.int64]:
        """int64: where the history of each user begins as of each time, in `_by_user`'s order."""
        if self.ttl_ms is None:
            return np.asarray(whole.offsets[users], np.int64)
        step = len(self) + 1
        keys = self.users[order].astype(np.int64) * step + order  # ascending: by user, and by place within a user
        oldest = np.searchsorted(self.times, oldest_counted(as_of, self.ttl_ms))
        return np.asarray(np.searchsorted(keys, users.astype(np.int64) * step + oldest), np.int64)
