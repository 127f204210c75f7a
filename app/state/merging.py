"""Merges: which session's history is part of which user's, and up to when.

A session merges once: of all merges that name it the first by (event time, user) holds, so that neither the order of
arrival matters nor which of its two copies (the event stands under both keys) is seen.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import orjson

from app.state.batch import StateEvent, session_key, user_key
from app.state.history import Entry, entries_of, fold


class Link(NamedTuple):
    """The merge of a session: its first by time and user."""

    time: int  # microseconds; the session's events up to it are the user's too
    user_id: str
    partition: int
    offset: int

    @classmethod
    def of(cls, record: bytes | None) -> "Link | None":
        if not record:
            return None
        time, partition, offset, user_id = orjson.loads(record)
        return cls(time, user_id, partition, offset)

    @classmethod
    def of_event(cls, event: StateEvent) -> "Link":
        """The merge that an event is."""
        return cls(event.time, event.user_id or "", event.partition, event.offset)

    def encode(self) -> bytes:
        return orjson.dumps([self.time, self.partition, self.offset, self.user_id])


class Links:
    """Links as they stand while a batch is applied: read through, changes kept for the write batch."""

    def __init__(self, load: Callable[[bytes], bytes | None]) -> None:
        self._load = load
        self._of_session: dict[str, Link | None] = {}
        self._of_user: dict[str, set[str]] = {}
        self._changed: dict[bytes, bytes | None] = {}

    def of_session(self, session_id: str) -> Link | None:
        if session_id not in self._of_session:
            self._of_session[session_id] = Link.of(self._load(session_key(session_id)))
        return self._of_session[session_id]

    def sessions(self, user_id: str) -> set[str]:
        """Sessions merged into the user."""
        if user_id not in self._of_user:
            record = self._load(user_key(user_id))
            self._of_user[user_id] = set(orjson.loads(record)) if record else set()
        return self._of_user[user_id]

    def merge(self, event: StateEvent) -> set[str]:
        """Takes a merge in; the users whose histories change by it."""
        user_id, session_id = event.user_id or "", event.session_id or ""
        link = Link.of_event(event)
        before = self.of_session(session_id)
        if before is not None and before <= link:
            return set()
        self._of_session[session_id] = link
        self._changed[session_key(session_id)] = link.encode()
        touched = {user_id}
        if before is not None and before.user_id != user_id:
            touched.add(before.user_id)
            self.sessions(before.user_id).discard(session_id)
            self._note(before.user_id)
        self.sessions(user_id).add(session_id)
        self._note(user_id)
        return touched

    def _note(self, user_id: str) -> None:
        sessions = sorted(self.sessions(user_id))
        self._changed[user_key(user_id)] = orjson.dumps(sessions) if sessions else None

    def changes(self) -> Iterable[tuple[bytes, bytes | None]]:
        """Keys and records to write; None: to delete."""
        return self._changed.items()


def fold_view(own: bytes | None, sessions: Iterable[tuple[bytes | None, Link]], max_history: int) -> bytes:
    """A user's history with merged sessions: what each id keeps, the sessions' up to their merge, the newest of all."""
    entries: list[Entry] = entries_of(own)
    for record, link in sessions:
        entries += [entry for entry in entries_of(record) if entry.time <= link.time]
    return fold(entries, max_history, view=True)
