"""What an erasure changes in the state: entries, merges, identities and columns from before it go.

An event behind the erasure's offsets starts a new history, so a record is not deleted as such: what came before goes
out of it.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from rocksdict import Rdict

from app.erasure.erased import Boundary, Erased
from app.erasure.places import Known
from app.events.schema import EVENTS
from app.state import layout
from app.state.batch import owner_digest, session_key, user_key
from app.state.candidates import CANDIDATES, candidates_key, encoded, places_of
from app.state.history import Entry, entries_of, fold, is_view
from app.state.merging import Link, fold_view

_I64 = struct.Struct("<q")
Who = Mapping[bytes, Sequence[Boundary]]  # `user_key` or `session_key` → the erasures of that id
Before = Callable[[Sequence[Boundary], int, int, int], bool]  # erasures, partition, offset, event time (µs)


@dataclass(slots=True)
class Erasing:
    """What is to be written, and what is then to be compacted.

    Attributes:
        changes: (family, key) → record; None: deleted.
        ranges: (family, first key, key behind the last): where old versions must not stay in the files.
    """

    changes: dict[tuple[str, bytes], bytes | None] = field(default_factory=dict)
    ranges: list[tuple[str, bytes, bytes]] = field(default_factory=list)


def before_by(topic_id: str, remade: bool) -> Before:
    """Whether an entry came before one of the erasures.

    Args:
        topic_id: of `events` as it is read now.
        remade: whether entries may be of an earlier topic of that name, whose offsets say nothing: then what happened
            before the request counts as before too.
    """

    def before(boundaries: Sequence[Boundary], partition: int, offset: int, time_us: int) -> bool:
        for boundary in boundaries:
            end = boundary.ends.get(EVENTS)
            same = end is not None and end.topic_id == topic_id
            if same and end is not None and offset < end.next.get(partition, 0):
                return True
            if (remade or not same) and time_us < boundary.requested_ms * 1000:
                return True
        return False

    return before


def erasing(
    families: Mapping[str, Rdict],
    who: Who,
    before: Before,
    columns_too: Callable[[Boundary], bool],
    max_history: int,
    *,
    shard: bool = False,
) -> Erasing:
    """Looks up what is there of some users and sessions.

    Args:
        families: of the database.
        who: the erased.
        before: `before_by`.
        columns_too: whether a user's columns are from before an erasure.
        max_history: `settings.state.max_history`.
        shard: the database is a shard, which holds each id's own entries alone.
    """
    found = Erasing()
    work = _Records(families, who, before, max_history, found.changes)
    users = {key for key in who if key[:1] == b"u"}
    for key in sorted(users):
        work.unlink(key)
    for key in sorted(who.keys() - users):
        users |= work.session(key)
    if shard:
        users &= who.keys()
        work.candidates()
    for key in sorted(users):
        (work.own if shard else work.user)(key)
    for key, boundaries in who.items():
        name = key[1:]
        if key[:1] == b"u" and any(columns_too(boundary) for boundary in boundaries):
            found.changes[layout.USERS, name] = None
        digest = owner_digest(name.decode())
        work.identities(digest, max(boundary.requested_ms for boundary in boundaries))
        found.ranges += [(family, key, key + b"\0") for family in (layout.HISTORIES, layout.OWN, layout.LINKS)]
        if shard:
            named = candidates_key(name.decode())
            found.ranges.append((layout.LINKS, named, named + b"\0"))
        found.ranges += [(layout.USERS, name, name + b"\0"), (layout.SEEN, digest, digest + b"\xff" * 9)]
    return found


def who_of(families: Mapping[str, Rdict], erased: Erased) -> dict[bytes, Sequence[Boundary]]:
    """Everybody in the database who was erased, found by hashing every id."""
    found: dict[bytes, Sequence[Boundary]] = {}
    for key in _keys(families):
        if key not in found and (
            boundaries := erased.boundaries("user" if key[:1] == b"u" else "session", key[1:].decode())
        ):
            found[key] = boundaries
    return found


def known_of(families: Mapping[str, Rdict], user_id: str) -> Known:
    """What is known of a user."""
    record: bytes | None = families[layout.LINKS].get(user_key(user_id))
    names: list[str] = orjson.loads(record) if record else []
    return Known(tuple(names), families[layout.USERS].get(user_id.encode()) is not None)


def _keys(families: Mapping[str, Rdict]) -> Iterator[bytes]:
    yield from families[layout.HISTORIES].keys(from_key=layout.FIRST)
    for key in families[layout.LINKS].keys(from_key=layout.FIRST):
        yield b"u" + key[1:] if key[:1] == CANDIDATES else key
    for name in families[layout.USERS].keys(from_key=layout.FIRST):
        yield b"u" + name


class _Records:
    """Records as they will be, over those that are there."""

    def __init__(
        self,
        families: Mapping[str, Rdict],
        who: Who,
        before: Before,
        max_history: int,
        changes: dict[tuple[str, bytes], bytes | None],
    ) -> None:
        self._families, self._who, self._before = families, who, before
        self._max_history, self._changes = max_history, changes

    def _get(self, family: str, key: bytes) -> bytes | None:
        if (family, key) in self._changes:
            return self._changes[family, key]
        found: bytes | None = self._families[family].get(key)
        return found

    def _left(self, key: bytes, record: bytes | None) -> list[Entry]:
        """The entries of an id that stay."""
        boundaries = self._who.get(key, ())
        return [
            entry
            for entry in entries_of(record)
            if not self._before(boundaries, entry.partition, entry.offset, entry.time)
        ]

    def unlink(self, key: bytes) -> None:
        """Takes out the merges into a user that came before the erasure."""
        names: list[str] = orjson.loads(self._get(layout.LINKS, key) or b"[]")
        kept = []
        for name in names:
            link = Link.of(self._get(layout.LINKS, session_key(name)))
            if link is None or self._before(self._who[key], link.partition, link.offset, link.time):
                self._changes[layout.LINKS, session_key(name)] = None
            else:
                kept.append(name)
        self._changes[layout.LINKS, key] = orjson.dumps(kept) if kept else None

    def session(self, key: bytes) -> set[bytes]:
        """Takes out a session's own entries; the users of whose histories they are a part."""
        left = self._left(key, self._get(layout.HISTORIES, key))
        self._changes[layout.HISTORIES, key] = fold(left, self._max_history) if left else None
        link = Link.of(self._get(layout.LINKS, key))
        return {user_key(link.user_id)} if link is not None else set()

    def candidates(self) -> None:
        """Takes out which sessions users may have been merged with, and sessions that are erased from all of them."""
        sessions = {key[1:].decode() for key in self._who if key[:1] == b"s"}
        for key, record in list(self._families[layout.LINKS].items(from_key=CANDIDATES)):
            if key[:1] != CANDIDATES:
                break
            mine, places = self._who.get(b"u" + key[1:], ()), places_of(record)
            kept = {
                name: found
                for name, copies in places.items()
                if (
                    found := [
                        copy
                        for copy in copies
                        if not self._before(mine, *copy)
                        and not (name in sessions and self._before(self._who[session_key(name)], *copy))
                    ]
                )
            }
            if kept != places:
                self._changes[layout.LINKS, key] = encoded(kept)

    def own(self, key: bytes) -> None:
        """Takes out a user's own entries."""
        left = self._left(key, self._get(layout.HISTORIES, key))
        self._changes[layout.HISTORIES, key] = fold(left, self._max_history) if left else None

    def user(self, key: bytes) -> None:
        """Folds a user's history from what is left of his own and of the sessions that are still merged."""
        record = self._get(layout.HISTORIES, key)
        own = self._left(key, self._get(layout.OWN, key) if is_view(record) else record)
        mine = fold(own, self._max_history) if own else None
        names: list[str] = orjson.loads(self._get(layout.LINKS, key) or b"[]")
        if not names:
            self._changes[layout.HISTORIES, key], self._changes[layout.OWN, key] = mine, None
            return
        parts = []
        for name in names:
            link = Link.of(self._get(layout.LINKS, session_key(name)))
            assert link is not None
            parts.append((self._get(layout.HISTORIES, session_key(name)), link))
        self._changes[layout.OWN, key] = mine or b""
        self._changes[layout.HISTORIES, key] = fold_view(mine, parts, self._max_history)

    def identities(self, digest: bytes, requested_ms: int) -> None:
        """Forgets the identities of an owner's events that arrived before the request."""
        for key, arrivals in self._families[layout.SEEN].items(from_key=digest):
            if not key.startswith(digest):
                return
            kept = [arrival for (arrival,) in _I64.iter_unpack(arrivals) if arrival >= requested_ms]
            self._changes[layout.SEEN, key] = b"".join(_I64.pack(arrival) for arrival in kept) or None
