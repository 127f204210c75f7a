"""What the answering side asks of the state, whatever holds it (a RocksDB secondary, or memory in tests)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.event_weights import EventWeights
from app.weighing import NEVER, dwell_s, weights_of

Kind = Literal["user", "session"]
_GONE, _VERSION_MASK = 0x1E3779B97F4A7C, (1 << 53) - 1  # versions are exact as JSON numbers


@dataclass(frozen=True, slots=True)
class UserHistory:
    """A history as of now, oldest first: a pure function of the accepted events (by time, partition, offset).

    Attributes:
        item_ids: n ids; a repeated item is one entry per event.
        event_types: n types. No impressions, no removed entries.
        times: int64 (n,), event time in milliseconds.
        values: float32 (n,), NaN where the event had none.
        version: changes with every event that changes the history; 0 for an unknown id.
        followed: int64 (n,), event time of what came next, removed entries included, milliseconds, `NEVER` behind the
            newest; None: that of the next entry.
    """

    item_ids: tuple[str, ...]
    event_types: tuple[str, ...]
    times: NDArray[np.int64]
    values: NDArray[np.float32]
    version: int
    followed: NDArray[np.int64] | None = None

    def next_times(self) -> NDArray[np.int64]:
        """int64 (n,): when the next event came after each (`app.weighing`), milliseconds."""
        return np.append(self.times[1:], NEVER) if self.followed is None else self.followed

    def weights(self, weights: EventWeights, gap_s: float) -> NDArray[np.float32]:
        """float32 (n,): what each entry weighs as of now (`app.weighing`); 0: does not count.

        Args:
            weights: by type.
            gap_s: the longest silence within a session, seconds.
        """
        kinds = sorted(set(self.event_types))
        known = {kind: weights[kind] for kind in kinds if kind in weights}
        if not all(one.is_plain for one in known.values()):
            places = {kind: place for place, kind in enumerate(kinds)}
            codes = np.fromiter(map(places.__getitem__, self.event_types), np.int64, len(self.event_types))
            dwell = partial(_dwell_of, self, gap_s)
            return weights_of(weights, kinds, codes, self.values, dwell)
        if len(kinds) == 1:  # most are
            return np.full(len(self.event_types), sum(one.weight for one in known.values()), np.float32)
        plain = {kind: one.weight for kind, one in known.items()}
        return np.fromiter(map(plain.get, self.event_types, repeat(0.0)), np.float32, len(self.event_types))

    def since(self, oldest_ms: int) -> "UserHistory":
        """Without entries older than that; the version says how many are gone."""
        gone = int(np.searchsorted(self.times, oldest_ms))
        if not gone:
            return self
        version = (self.version + gone * _GONE) & _VERSION_MASK
        left = (self.item_ids[gone:], self.event_types[gone:], self.times[gone:], self.values[gone:])
        followed = None if self.followed is None else self.followed[gone:]
        return UserHistory(*left, version, followed) if left[0] else EMPTY_HISTORY


def _dwell_of(history: UserHistory, gap_s: float) -> NDArray[np.float32]:
    return dwell_s(history.times, history.next_times(), gap_s)


EMPTY_HISTORY = UserHistory((), (), np.empty(0, np.int64), np.empty(0, np.float32), 0)


@dataclass(frozen=True, slots=True)
class ItemChange:
    """An item put or withdrawn, in the order of `sequence` (from 1, rising)."""

    sequence: int
    item_id: str
    available: bool
    columns: dict[str, Any]  # of a withdrawn item: its last columns


class StateReader(Protocol):
    """Reads; never writes."""

    def behind(self) -> bool:
        """Whether the writer's shared position has moved since the last catch-up. Costs a memory read."""
        ...

    def catch_up(self) -> None:
        """Makes everything up to the shared position visible. Blocks (milliseconds).

        Raises:
            StateUnavailable: it cannot.
        """
        ...

    def histories(self, keys: Sequence[tuple[Kind, str]]) -> list[UserHistory]:
        """One history a key; unknown: EMPTY_HISTORY."""
        ...

    def user_columns(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]: ...

    def item(self, item_id: str) -> ItemChange | None:
        """The item as it stands; None: unknown."""
        ...

    def item_changes(self, after: int) -> list[ItemChange]:
        """Changes with a sequence above `after`, oldest first; only the last change of each item need be there."""
        ...

    def item_sequence(self) -> int:
        """Sequence of the newest item change, from the shared position. Costs a memory read."""
        ...

    def merged_into(self, session_id: str) -> str | None:
        """The user whom a session was merged into; None: it was not."""
        ...

    def applied(self, topic: str, partition: int) -> int:
        """The next offset of the partition that is not applied yet, from the shared position."""
        ...

    def as_of(self) -> int:
        """The watermark: the highest event time applied, milliseconds; 0 without events."""
        ...
