"""What is to be left out because somebody was erased: by who it is about, and where or when it arrived.

Of an erasure only salted hashes of the ids are kept, and for each topic the offsets up to which it reaches. What lies
at or behind those offsets starts a new history.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.settings import Settings

if TYPE_CHECKING:
    from app.erasure.ledger import ErasureLedger

Kind = Literal["user", "session"]
KINDS: tuple[Kind, ...] = ("user", "session")
Ids: TypeAlias = pa.Array | pa.ChunkedArray  # of text
Mask = NDArray[np.bool_]
_KEY_BYTES = 16
_NEVER = -1


@dataclass(frozen=True, slots=True)
class TopicEnd:
    """Where a topic ended.

    Attributes:
        topic_id: which topic; "" where the broker has no ids.
        next: partition → the offset after the last.
    """

    topic_id: str
    next: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Boundary:
    """How far an erasure reaches.

    Attributes:
        requested_ms: when it was asked for, milliseconds since 1970; read before the offsets are.
        ends: topic → where it ended then.
    """

    requested_ms: int
    ends: Mapping[str, TopicEnd]

    def holds(self, topic: str, topic_id: str, partition: int, offset: int, record_ms: int) -> bool:
        """Whether a message came before the erasure: by its offset; in a topic that was made anew since by arrival."""
        end = self.ends.get(topic)
        if end is None or end.topic_id != topic_id:
            return record_ms < self.requested_ms
        return offset < end.next.get(partition, 0)

    def holds_stored(self, topic: str, partitions: NDArray, offsets: NDArray, record_ms: NDArray) -> Mask:  # type: ignore[type-arg]
        """bool (n,): which rows of a table that outlives its topic came before: by offset or by arrival.

        Rows of a topic that was made anew since may have any offset; so what arrived earlier is taken too.
        """
        before: Mask = record_ms < self.requested_ms
        end = self.ends.get(topic)
        for partition, upto in (end.next if end is not None else {}).items():
            before |= (partitions == partition) & (offsets < upto)
        return before


@dataclass(frozen=True, slots=True)
class Entry:
    """One erasure as everyone may know it: `keys` are `Salt.key` of the user and of the sessions merged into him."""

    keys: frozenset[bytes]
    boundary: Boundary


@dataclass(frozen=True, slots=True)
class Salt:
    """Hashes ids so that nobody without the salt can tell which id it was."""

    value: bytes = field(repr=False)

    def key(self, kind: Kind, name: str) -> bytes:
        """16 bytes."""
        return blake2b(name.encode(), digest_size=_KEY_BYTES, key=self.value, person=kind.encode()).digest()

    def shown(self, user_id: str) -> str:
        """A user's hash as logs carry it: 32 hexadecimal digits."""
        return self.key("user", user_id).hex()


class Erased:
    """Every erasure so far. Immutable; where there are none, or all lie behind, asking costs next to nothing."""

    def __init__(self, salt: Salt, entries: Iterable[Entry]) -> None:
        self.salt = salt
        self.version = 0  # rises with every erasure, and with every session that is added to one
        self._of: dict[bytes, list[Boundary]] = {}
        self._boundaries: list[Boundary] = []
        for entry in entries:
            self.version += 1 + len(entry.keys)
            self._boundaries.append(entry.boundary)
            for key in entry.keys:
                self._of.setdefault(key, []).append(entry.boundary)
        self._on: dict[tuple[str, str], ErasedOn] = {}
        self._last_ms = max((boundary.requested_ms for boundary in self._boundaries), default=_NEVER)

    def __len__(self) -> int:
        return len(self._boundaries)

    def boundaries(self, kind: Kind, name: str) -> Sequence[Boundary]:
        """The erasures of one id."""
        return self._of.get(self.salt.key(kind, name), ()) if self._of else ()

    def on(self, topic: str, topic_id: str) -> "ErasedOn":
        """The same for the messages of one topic; `topic_id` is that of the topic as it is now ("": no ids)."""
        found = self._on.get((topic, topic_id))
        if found is None:
            found = self._on[topic, topic_id] = ErasedOn(self, topic, topic_id, self._boundaries)
        return found

    def imports(self, user_ids: Ids, session_ids: Ids, times_ms: NDArray[np.int64]) -> Mask:
        """bool (n,): rows that come from elsewhere, without offsets, about what happened before an erasure."""
        asked: Mask = times_ms < self._last_ms
        found = np.zeros(len(asked), np.bool_)
        for row, boundaries in self.owned(user_ids, session_ids, asked):
            found[row] = any(times_ms[row] < boundary.requested_ms for boundary in boundaries)
        return found

    def stored(self, topic: str, rows: pa.Table) -> Mask:
        """bool (n,): rows of a table of the lake (`user_id`, `session_id` where there is one, `partition`, `offset`,
        `record_time`) that an erasure reaches."""
        found = np.zeros(len(rows), np.bool_)
        if not self._of or not len(rows):
            return found
        partitions, offsets = rows["partition"].to_numpy(), rows["offset"].to_numpy()
        arrived = record_ms_of(rows)
        users, sessions = owners_of(rows)
        for row, boundaries in self.owned(users, sessions, np.ones(len(rows), np.bool_)):
            one = slice(row, row + 1)
            found[row] = any(b.holds_stored(topic, partitions[one], offsets[one], arrived[one])[0] for b in boundaries)
        return found

    def owned(self, user_ids: Ids, session_ids: Ids, asked: Mask) -> Iterable[tuple[int, Sequence[Boundary]]]:
        """(row, its erasures) of those of the asked rows that are about somebody who was erased.

        A row belongs to its user, and only without one to its session.
        """
        if not self._of or not asked.any():
            return
        rows = np.flatnonzero(asked)
        has_user: Mask = np.asarray(pc.is_valid(user_ids))
        for kind, column, some in zip(
            KINDS, (user_ids, session_ids), (rows[has_user[rows]], rows[~has_user[rows]]), strict=True
        ):
            if not len(some):
                continue
            names = column.take(pa.array(some)).dictionary_encode()
            names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
            hits = [
                self._of.get(self.salt.key(kind, name)) if name is not None else None
                for name in names.dictionary.to_pylist()
            ]
            if not any(hits):
                continue
            places = names.indices.to_numpy(zero_copy_only=False)
            for row, place in zip(some.tolist(), places.tolist(), strict=True):
                if place == place and (boundaries := hits[int(place)]):
                    yield row, boundaries


class ErasedOn:
    """What of one topic is to be left out."""

    def __init__(self, erased: Erased, topic: str, topic_id: str, boundaries: Sequence[Boundary]) -> None:
        self._erased, self._topic, self._topic_id = erased, topic, topic_id
        self._limits: dict[int, int] = {}
        self._until_ms = _NEVER  # of erasures whose offsets say nothing about this topic
        for boundary in boundaries:
            end = boundary.ends.get(topic)
            if end is None or end.topic_id != topic_id:
                self._until_ms = max(self._until_ms, boundary.requested_ms)
                continue
            for partition, upto in end.next.items():
                self._limits[partition] = max(self._limits.get(partition, 0), upto)

    def passed(self, firsts: Mapping[int, int]) -> bool:
        """Whether nothing is left out from these offsets on (partition → offset): the usual case."""
        if self._until_ms != _NEVER:
            return False
        return all(offset >= self._limits.get(partition, 0) for partition, offset in firsts.items())

    def may(self, partition: int, offset: int, record_ms: int) -> bool:
        """Whether a message lies where something is left out at all; hashes nothing."""
        return offset < self._limits.get(partition, 0) or record_ms < self._until_ms

    def message(self, kind: Kind, name: str, partition: int, offset: int, record_ms: int) -> bool:
        """Whether one message, which belongs to that user or session, is to be left out."""
        return self.may(partition, offset, record_ms) and any(
            boundary.holds(self._topic, self._topic_id, partition, offset, record_ms)
            for boundary in self._erased.boundaries(kind, name)
        )

    def keyed(self, key: bytes | None, partition: int, offset: int, record_ms: int) -> bool:
        """As `message`, where only the message's key is known: a user or a session."""
        if not key or not self.may(partition, offset, record_ms):
            return False
        name = key.decode(errors="replace")
        return any(self.message(kind, name, partition, offset, record_ms) for kind in KINDS)

    def rows(self, rows: pa.Table) -> Mask:
        """bool (n,): which rows (`user_id`, `session_id` where there is one, `partition`, `offset`, `record_time`)
        are to be left out."""
        found = np.zeros(len(rows), np.bool_)
        if not len(rows) or (not self._limits and self._until_ms == _NEVER):
            return found
        partitions, offsets = rows["partition"].to_numpy(), rows["offset"].to_numpy()
        arrived = record_ms_of(rows)
        asked: Mask = arrived < self._until_ms
        for partition, upto in self._limits.items():
            asked |= (partitions == partition) & (offsets < upto)
        users, sessions = owners_of(rows)
        for row, boundaries in self._erased.owned(users, sessions, asked):
            place = (int(partitions[row]), int(offsets[row]), int(arrived[row]))
            found[row] = any(boundary.holds(self._topic, self._topic_id, *place) for boundary in boundaries)
        return found


def record_ms_of(rows: pa.Table) -> NDArray[np.int64]:
    """Arrival of each row, milliseconds: `record_time` as a timestamp, or as the number it already is."""
    column = rows["record_time"]
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64()).to_numpy())
    return np.asarray(column.to_numpy())


def owners_of(rows: pa.Table) -> tuple[Ids, Ids]:
    """The columns `user_id` and `session_id` (nulls where the table has none)."""
    users = rows["user_id"]
    return users, rows["session_id"] if "session_id" in rows.column_names else pa.nulls(len(rows), pa.string())


NOBODY = Erased(Salt(b""), ())
# Every erasure as of now. Raises RegistryUnavailable: the ledger does not answer.
ErasedNow = Callable[[], Erased]


def nobody() -> Erased:
    """An `ErasedNow` where no ledger is."""
    return NOBODY


class ErasedWatch:
    """An `ErasedNow` for whoever goes on asking: the ledger is read again only where it has changed."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home
        self._ledger: ErasureLedger | None = None
        self._mark: tuple[int, int] | None = None
        self._erased = NOBODY

    def __call__(self) -> Erased:
        if self._ledger is None:
            if not self._settings.registry.url and not (self._home / "registry.db").exists():
                return NOBODY
            from app.erasure.ledger import ErasureLedger  # SQLAlchemy is not for everybody

            self._ledger = ErasureLedger(self._settings, self._home)
        mark = self._ledger.mark()
        if mark != self._mark:
            self._erased, self._mark = self._ledger.erased(), mark
        return self._erased

    def close(self) -> None:
        """Gives the connections back."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def load_erased(settings: Settings, home: Path) -> Erased:
    """Every erasure as of now, once.

    Raises:
        RegistryUnavailable: the ledger does not answer.
    """
    watch = ErasedWatch(settings, home)
    try:
        return watch()
    finally:
        watch.close()
