"""What the answering side asks of the state, whatever holds it (a RocksDB secondary, or memory in tests)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

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
    """

    item_ids: tuple[str, ...]
    event_types: tuple[str, ...]
    times: NDArray[np.int64]
    values: NDArray[np.float32]
    version: int

    def since(self, oldest_ms: int) -> "UserHistory":
        """Without entries older than that; the version says how many are gone."""
        gone = int(np.searchsorted(self.times, oldest_ms))
        if not gone:
            return self
        version = (self.version + gone * _GONE) & _VERSION_MASK
        left = (self.item_ids[gone:], self.event_types[gone:], self.times[gone:], self.values[gone:])
        return UserHistory(*left, version) if left[0] else EMPTY_HISTORY


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
