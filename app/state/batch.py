"""What the writer applies at once: checked messages of the topics `events`, `items` and `users`, and where they end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from app.events.schema import EVENTS, MERGE
from app.events.versions import VersionPlace
from app.state.history import NOT_IN_HISTORY, Entry

_PLACE = f"{EVENTS}/"


class StateEvent(NamedTuple):
    """An accepted event as the state sees it; at least one of `user_id` and `session_id` is there."""

    partition: int
    offset: int
    record_time: int  # arrival, milliseconds
    event_id: str | None
    user_id: str | None
    session_id: str | None
    item_id: str | None
    event_type: str
    time: int  # microseconds
    value: float  # NaN: none

    @property
    def key(self) -> bytes:
        """Key of the history it belongs to: the user's alone where both ids are there."""
        return user_key(self.user_id) if self.user_id else session_key(self.session_id or "")

    @property
    def identity(self) -> bytes | None:
        """16 bytes that are equal for events that count once; None: nothing else can be equal."""
        if self.event_id is None or self.event_type == MERGE:
            return None
        owner = self.user_id or self.session_id or ""
        return owner_digest(owner) + _half(self.event_id)

    @property
    def named_by_place(self) -> bool:
        """Whether it came without an id: no earlier event is the same, not even at its place in an earlier topic."""
        name = self.event_id
        return name is not None and name.startswith(_PLACE) and name == f"{_PLACE}{self.partition}/{self.offset}"

    @property
    def entry(self) -> Entry | None:
        """Its place in the history; None: it has none there."""
        if self.item_id is None or self.event_type in NOT_IN_HISTORY:
            return None
        return Entry(self.time, self.partition, self.offset, self.item_id, self.event_type, self.value)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages in the order of their offsets within each partition.

    Attributes:
        events: checked events.
        items: (item id, columns as JSON); None: withdrawn.
        item_places: where each of them came from; empty: all from one partition.
        users: (user id, columns as JSON); None: forgotten.
        offsets: (topic, partition) → next offset once this batch is applied.
        skipped: messages left out, by reason.
        jumps: offsets that were not there to be read, by topic and partition: a gap, or a log that ended earlier.
    """

    events: Sequence[StateEvent] = ()
    items: Sequence[tuple[str, bytes | None]] = ()
    users: Sequence[tuple[str, bytes | None]] = ()
    offsets: Mapping[tuple[str, int], int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    jumps: Mapping[str, int] = field(default_factory=dict)
    item_places: Sequence[VersionPlace] = ()

    def __len__(self) -> int:
        return len(self.events) + len(self.items) + len(self.users)


def identities_of(events: Iterable[StateEvent]) -> list[bytes | None]:
    """`StateEvent.identity` of each."""
    return [
        None if name is None or kind == MERGE else owner_digest(user or session or "") + _half(name)
        for _, _, _, name, user, session, _, kind, _, _ in events
    ]


def entries_by_key(events: Iterable[StateEvent]) -> tuple[dict[bytes, list[Entry]], list[StateEvent]]:
    """The entries of each history (`StateEvent.key` → `StateEvent.entry`), in the order of the events; the merges."""
    entries: dict[bytes, list[Entry]] = {}
    merges: list[StateEvent] = []
    new = tuple.__new__  # half the time of a named tuple's own
    for event in events:
        partition, offset, _, _, user, session, item, kind, time, value = event
        if kind == MERGE:
            merges.append(event)
        elif item is not None and kind not in NOT_IN_HISTORY:
            key = user_key(user) if user else session_key(session or "")
            entry = new(Entry, (time, partition, offset, item, kind, value))
            if (found := entries.get(key)) is None:
                entries[key] = [entry]
            else:
                found.append(entry)
    return entries, merges


def counts_already(event: StateEvent, arrivals: Iterable[tuple[int]], horizon_ms: int) -> bool:
    """Whether an event of the same identity that counts arrived within the horizon: the rule of the lake."""
    if event.named_by_place:
        return False
    return any(abs(event.record_time - arrival) < horizon_ms for (arrival,) in arrivals)


def owner_digest(owner: str) -> bytes:
    """The first half of the identities of a user's or session's events."""
    return _half(owner)


def _half(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


def user_key(user_id: str) -> bytes:
    """Database key of a user."""
    return b"u" + user_id.encode()


def session_key(session_id: str) -> bytes:
    """Database key of a session."""
    return b"s" + session_id.encode()
