"""Segments of a training set: the events of each country, category, surface ..., and the small data set of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.errors import MantaError
from app.models.interactions import Catalogue, Interactions
from app.models.unsettled import Unsettled
from tune.trial import SharedData


@dataclass(frozen=True, slots=True)
class Segments:
    """Which events are of which segment; an event of an item with several categories is of all of these.

    Attributes:
        names: S values, the segment with most events first.
        offsets: int64 (S + 1,), segment s has `positions[offsets[s]:offsets[s + 1]]`.
        positions: int64, ascending within a segment.
        left_out: segments too small for a model of their own.
    """

    names: list[str]
    offsets: NDArray[np.int64]
    positions: NDArray[np.int64]
    left_out: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 (S,): events of each."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class SegmentedData:
    """What all models of a sweep by segment look at; it travels once, through the object store.

    Attributes:
        interactions: all events that may be looked at.
        n_fit: the oldest events, which are fitted on; the others validate.
        most_cases: validation cases of one segment at most.
    """

    interactions: Interactions
    catalogue: Catalogue
    segments: Segments
    n_fit: int
    most_cases: int
    history_limit: int
    seed: int

    def cut(self, segment: int) -> SharedData:
        """The segment's events alone, with the users and items that stand in them as rows 0, 1, ..."""
        first, last = self.segments.offsets[segment : segment + 2]
        places = self.segments.positions[first:last]
        whole = self.interactions
        users, own_users = np.unique(whole.users[places], return_inverse=True)
        items, own_items = np.unique(whole.items[places], return_inverse=True)
        events = Interactions(
            own_users.astype(np.int32),
            own_items.astype(np.int32),
            whole.weights[places],
            whole.times[places],
            len(users),
            len(items),
            whole.ttl_ms,
            unsettled=self._unsettled(places, items),
        )
        ids = [self.catalogue.item_ids[row] for row in items.tolist()]
        n_fit = int(np.searchsorted(places, self.n_fit))
        cases = np.arange(n_fit, len(places))
        if len(cases) > self.most_cases:
            cases = np.sort(np.random.default_rng(self.seed).choice(cases, self.most_cases, replace=False))
        columns = self.catalogue.columns.take(items) if self.catalogue.columns.num_columns else None
        return SharedData(events, Catalogue.of(ids, columns), n_fit, cases, self.history_limit)

    def _unsettled(self, places: NDArray[np.int64], items: NDArray[np.int32]) -> Unsettled | None:
        """What weighed something else before the events at these places came, in the segment's own rows."""
        whole = self.interactions
        if whole.unsettled is None:
            return None
        mine = np.zeros(len(whole), np.bool_)
        mine[places] = True
        rows = np.full(whole.n_items, -1, np.int32)
        rows[items] = np.arange(len(items))
        return whole.unsettled.some(mine).relabelled(rows)


def by_mark(marks: pa.Array, n_fit: int, least_events: int, wanted: Sequence[str] = ()) -> Segments:
    """Segments by one value of each event; events without one are of none."""
    codes = marks.dictionary_encode()
    own = np.asarray(pc.fill_null(codes.indices, -1), np.int64)
    places = np.flatnonzero(own >= 0)
    return _kept(codes.dictionary.to_pylist(), own[places], places, n_fit, least_events, wanted)


def by_item(
    interactions: Interactions,
    catalogue: Catalogue,
    column: str,
    n_fit: int,
    least_events: int,
    wanted: Sequence[str] = (),
) -> Segments:
    """Segments by a column of the events' items; of a list an event belongs to each value.

    Raises:
        MantaError: no such column.
    """
    if column not in catalogue.columns.column_names:
        known = ", ".join(catalogue.columns.column_names) or "none"
        raise MantaError(f"sweep: segment.by: found {column!r}, wanted a column of the items: {known}")
    values = catalogue.columns[column].combine_chunks()
    if pa.types.is_list(values.type):
        rows, flat = np.asarray(pc.list_parent_indices(values), np.int64), pc.list_flatten(values)
    else:
        rows, flat = np.arange(len(values)), values
    codes = pc.cast(flat, pa.string()).dictionary_encode()
    held = np.asarray(pc.fill_null(codes.indices, -1), np.int64)
    rows, held = np.unique(np.stack([rows[held >= 0], held[held >= 0]]), axis=1)  # a value that repeats counts once
    starts = np.searchsorted(rows, np.arange(len(catalogue) + 1))  # rows ascend
    many = np.diff(starts)[interactions.items]
    places = np.repeat(np.arange(len(interactions)), many)
    offset = np.arange(len(places)) - np.repeat(np.cumsum(many) - many, many)
    own = held[np.repeat(starts[:-1][interactions.items], many) + offset]
    return _kept(codes.dictionary.to_pylist(), own, places, n_fit, least_events, wanted)


def _kept(
    names: list[str],
    own: NDArray[np.int64],
    places: NDArray[np.int64],
    n_fit: int,
    least_events: int,
    wanted: Sequence[str],
) -> Segments:
    """Segments with enough events to fit on and at least one to judge by, the largest first, equal ones by name."""
    fitted = np.bincount(own[places < n_fit], minlength=len(names))
    judged = np.bincount(own[places >= n_fit], minlength=len(names))
    asked = [not wanted or name in wanted for name in names]
    enough = [code for code in range(len(names)) if asked[code] and fitted[code] >= least_events and judged[code]]
    enough.sort(key=lambda code: (-(fitted[code] + judged[code]), names[code]))
    if not enough:
        raise MantaError(
            f"sweep: segment: found {len(names)} values, none with {least_events} events to fit on and one to judge "
            "by; wanted at least one (segment.least_events)"
        )
    rank = np.full(len(names), len(names))
    rank[enough] = np.arange(len(enough))
    mine = rank[own]
    order = np.lexsort((places, mine))
    order = order[mine[order] < len(enough)]
    sizes = (fitted + judged)[enough]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Segments([names[code] for code in enough], offsets, places[order], sum(asked) - len(enough))
