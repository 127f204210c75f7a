"""What one database of the state holds: all of it, or with `state.placement: sharded` a node's part or a shard.

A shard holds the histories of the owners (user, else session) whose murmur2 modulo `state.shards` is its number. Kafka
places messages by the same hash, so that where `state.shards` divides the number of partitions, a shard reads the
partitions whose numbers are its own modulo `state.shards`, and no other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import StateUnavailable
from app.events.partitioner import partition_of, partitions_of
from app.events.schema import EVENTS, ITEMS, MERGE, USERS
from app.settings import StateSettings
from app.state.batch import StateEvent

_ONE_BY_ONE = 20  # columns have a cost per batch


class ShareDiffers(StateUnavailable):
    """A database holds another share than is wanted of it."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the state.

    Attributes:
        topics: what is read for it.
        of: number of shards; 0: histories are not sharded.
        shard: its number, from 0; -1: it is no shard.
    """

    topics: tuple[str, ...] = (EVENTS, ITEMS, USERS)
    of: int = 0
    shard: int = -1

    @property
    def is_shard(self) -> bool:
        return self.shard >= 0

    def __str__(self) -> str:
        if self.is_shard:
            return f"shard {self.shard} of {self.of}"
        return f"the items and users beside {self.of} shards" if self.of else "the whole state (placement node)"

    def reads(self, topic: str, partition: int) -> bool:
        """Whether messages of a partition can be for it."""
        return topic in self.topics and (not self.is_shard or partition % self.of == self.shard)

    def holds(self, owner: str) -> bool:
        """Whether the history of a user or session belongs to it."""
        return not self.is_shard or shard_of(owner, self.of) == self.shard

    def taken(self, events: Sequence[StateEvent]) -> list[StateEvent]:
        """The events that belong to it; a merge belongs to the user's shard and to the session's."""
        if not self.is_shard:
            return list(events)
        if len(events) <= _ONE_BY_ONE:
            return [event for event in events if self._takes(event)]
        owners = [(event.user_id or event.session_id or "").encode() for event in events]
        mine = (partitions_of(owners, self.of) == self.shard).tolist()
        return [event for event, here in zip(events, mine, strict=True) if here or self._takes_session(event)]

    def _takes(self, event: StateEvent) -> bool:
        return self.holds(event.user_id or event.session_id or "") or self._takes_session(event)

    def _takes_session(self, event: StateEvent) -> bool:
        return event.event_type == MERGE and self.holds(event.session_id or "")

    def saved(self) -> dict[str, Any]:
        """As it is kept with the database."""
        return {"of": self.of, "shard": self.shard}

    @classmethod
    def of_saved(cls, saved: dict[str, int] | None) -> "Share":
        """As `saved` kept it; None: the whole state."""
        if saved is None or not saved["of"]:
            return WHOLE
        return shard(saved["shard"], saved["of"]) if saved["shard"] >= 0 else beside(saved["of"])

    def require(self, found: "Share", where: Path) -> None:
        """Raises ShareDiffers unless the database at `where` holds this."""
        if found != self:
            raise ShareDiffers(f"state database {where}: found {found}, wanted {self}: run `manta state rebuild`")


def beside(shards: int) -> Share:
    """What every node holds beside so many shards."""
    return Share((ITEMS, USERS), shards)


def shard(number: int, shards: int) -> Share:
    """One of so many shards; its number, from 0."""
    return Share((EVENTS,), shards, number)


WHOLE = Share()


def shard_of(owner: str, shards: int) -> int:
    """The shard of a user or session: Kafka's hash of its id, modulo the number of shards."""
    return partition_of(owner.encode(), shards)


def node_share(settings: StateSettings) -> Share:
    """What the database of each node itself holds."""
    return beside(settings.shards) if settings.placement == "sharded" else WHOLE


def shares(settings: StateSettings) -> Iterator[Share]:
    """All databases that together are the state."""
    yield node_share(settings)
    if settings.placement == "sharded":
        yield from (shard(number, settings.shards) for number in range(settings.shards))
