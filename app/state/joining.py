"""Histories out of shards: each holds its owners' own entries, and a login is joined when the history is read.

A user's shard knows which sessions any merge names with the user, a session's shard which merge was its first. So a
history takes one look into the user's shard, and for users with merges one more into the sessions' shards.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from rocksdict import Rdict

from app.errors import StateUnavailable
from app.settings import StateSettings
from app.state import layout
from app.state.batch import session_key, user_key
from app.state.candidates import candidates_key, places_of
from app.state.history import read
from app.state.merging import Link, fold_view
from app.state.reader import Kind, UserHistory
from app.state.shares import shard_of


class Found(NamedTuple):
    """What a shard has of a user or session.

    Attributes:
        record: its own entries (`app.state.history`); None: none.
        merged: of a session its first merge (`app.state.merging.Link`), of a user the sessions that may be merged
            into it (`app.state.candidates`); None: none.
    """

    record: bytes | None
    merged: bytes | None


Wanted: TypeAlias = dict[int, list[bytes]]  # shard → keys (`user_key`, `session_key`)
Looked: TypeAlias = Mapping[int, Sequence[Found] | StateUnavailable]  # what each shard has of its keys, or why not
Joined: TypeAlias = list[UserHistory | StateUnavailable]


def look(histories: Rdict, links: Rdict, keys: Sequence[bytes]) -> list[Found]:
    """What a shard's families have of some keys."""
    names = [candidates_key(key[1:].decode()) if key[:1] == b"u" else key for key in keys]
    found = zip(layout.get_many(histories, keys), layout.get_many(links, names), strict=True)
    return [Found(*one) for one in found]


class Join:
    """The histories of some keys, joined from what the shards have. Whoever drives it does the looking."""

    def __init__(self, keys: Sequence[tuple[Kind, str]], shards: int, max_history: int) -> None:
        self._keys, self._shards, self._max_history = keys, shards, max_history
        self._names = [user_key(name) if kind == "user" else session_key(name) for kind, name in keys]
        self._found: dict[bytes, Found | StateUnavailable] = {}

    def steps(self) -> Generator[Wanted, Looked, None]:
        """Yields what must be looked up, at most twice, and is sent what was found."""
        for names in (self._names, self._sessions()):
            wanted: Wanted = {}
            for name in dict.fromkeys(names):
                if name not in self._found:
                    wanted.setdefault(shard_of(name[1:].decode(), self._shards), []).append(name)
            if not wanted:
                continue
            looked = yield wanted
            for shard, those in wanted.items():
                answer = looked[shard]
                if isinstance(answer, StateUnavailable):
                    self._found.update(dict.fromkeys(those, answer))
                else:
                    self._found.update(zip(those, answer, strict=True))

    def _sessions(self) -> Iterator[bytes]:
        """Keys of the sessions of all users among the keys; read once those have been looked up."""
        for name in self._names:
            found = self._found[name]
            if name[:1] == b"u" and isinstance(found, Found):
                yield from (session_key(session) for session in places_of(found.merged))

    def histories(self, since: int | None) -> Joined:
        """One a key: the history as under placement `node`, or why a part of it cannot be had.

        Args:
            since: earliest event time that counts, milliseconds; None: all count.
        """
        return [self._history(name, since) for name in self._names]

    def _history(self, name: bytes, since: int | None) -> UserHistory | StateUnavailable:
        mine = self._found[name]
        if isinstance(mine, StateUnavailable):
            return mine
        parts = []
        for session_id in sorted(places_of(mine.merged)) if name[:1] == b"u" else ():
            theirs = self._found[session_key(session_id)]
            if isinstance(theirs, StateUnavailable):
                return theirs
            link = Link.of(theirs.merged)
            if link is None or link.user_id.encode() != name[1:]:
                continue  # it is another's, or was erased
            if since is None or link.time >= since * 1000:  # else all that it would bring has expired
                parts.append((theirs.record, link))
        return read(fold_view(mine.record, parts, self._max_history) if parts else mine.record, since)


def joined(
    keys: Sequence[tuple[Kind, str]],
    settings: StateSettings,
    look_into: Callable[[int, Sequence[bytes]], Sequence[Found] | StateUnavailable],
) -> Join:
    """A join whose looks, each into one shard, are taken at once."""
    join = Join(keys, settings.shards, settings.max_history)
    steps = join.steps()
    with contextlib.suppress(StopIteration):
        wanted = next(steps)
        while True:
            wanted = steps.send({number: look_into(number, names) for number, names in wanted.items()})
    return join


def one_of(history: UserHistory | StateUnavailable) -> UserHistory:
    """The history; raises why it cannot be had."""
    if isinstance(history, StateUnavailable):
        raise history
    return history
