"""A `StateReader` over the shards: those of this node in process, the others by asking their owners."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.settings import StateSettings
from app.state.batch import session_key
from app.state.joining import Found, Join, Wanted, joined, one_of
from app.state.layout import StatePaths
from app.state.merging import Link
from app.state.reader import ItemChange, Kind, StateReader, UserHistory
from app.state.replica import StateReplica
from app.state.room import Shortage
from app.state.shares import beside, shard, shard_of

_AGAIN_S = 0.2  # a shard that cannot be read is not tried again before
_ANEW_S = 3.0  # a replica that has failed for this long is replaced

Key = tuple[Kind, str]


class Looked(NamedTuple):
    """What the owner of a shard answers.

    Attributes:
        found: one a key.
        as_of: the shard's watermark, milliseconds; 0: none.
        since: earliest event time that counts as of that, milliseconds; None: all count.
        applied: partition of `events` → next offset that the shard lacks.
    """

    found: list[Found]
    as_of: int
    since: int | None
    applied: dict[int, int]


class Owners(Protocol):
    """The shards of other nodes."""

    async def look(self, shard: int, keys: Sequence[bytes], /) -> Looked:
        """Everything that was applied before the call is in the answer.

        Raises:
            StateUnavailable: the shard's owner is down, or has not caught up yet.
        """
        ...


class Nowhere:
    """`Owners` where there are no other nodes."""

    async def look(self, shard: int, _: Sequence[bytes]) -> Looked:
        """As `Owners.look`."""
        raise _not_here(shard)


class _Here:
    """A shard of this node: its replica, and why it cannot be read if it cannot."""

    def __init__(self, home: Path, name: str, number: int, shards: int) -> None:
        self._home, self._name, self._share = home, name, shard(number, shards)
        self._failing: float | None = None
        self._tried, self._made = 0.0, 0
        self.error: StateUnavailable | None = StateUnavailable(
            f"{self._share}: found it not read yet, wanted a catch-up"
        )
        self._open()

    def _open(self) -> None:
        self._made += 1
        self.replica = StateReplica.of_home(self._home, f"{self._name}-{self._made}", self._share)

    def behind(self) -> bool:
        if self.error is not None and time.monotonic() - self._tried < _AGAIN_S:
            return False
        return self.error is not None or self.replica.behind()

    def catch_up(self) -> None:
        """A shard that cannot be followed takes none of the others down: whoever wants it is told."""
        if not self.behind():
            return
        self._tried = time.monotonic()
        try:
            self.replica.catch_up()
        except StateUnavailable as error:
            self.error, began = error, self._failing or self._tried
            self._failing = began
            if self._tried - began > _ANEW_S:
                self._failing = None
                self.replica.close()
                self._open()
            return
        self.error = self._failing = None

    def look(self, keys: Sequence[bytes]) -> list[Found]:
        if self.error is not None:
            raise self.error
        return self.replica.look(keys)


class ShardedState:
    """The state as a node sees it. Every method may be called from any thread, `gather` from an event loop.

    Attributes:
        owners: who is asked for shards that are not here.
    """

    def __init__(self, home: Path, name: str, settings: StateSettings, owners: Owners | None = None) -> None:
        """Takes the MANTA_HOME, the name of this reader's folders, and whom to ask; None: nobody."""
        self._home, self._name, self._settings = home, name, settings
        self.owners: Owners = owners or Nowhere()
        self._node = StateReplica.of_home(home, name, beside(settings.shards))
        self._here: dict[int, _Here] = {}
        self._heard: dict[int, Looked] = {}

    def keep(self, here: Collection[int]) -> None:
        """From now on these shards are read here, and no others."""
        before = self._here
        self._here = {
            number: before.get(number) or _Here(self._home, self._name, number, self._settings.shards)
            for number in sorted(here)
        }
        for number in before.keys() - self._here.keys():
            before[number].replica.close()

    @property
    def here(self) -> frozenset[int]:
        """The shards that are read here."""
        return frozenset(self._here)

    def close(self) -> None:
        """Gives up what is on the disk."""
        self.keep(())
        self._node.close()

    # --- following

    def behind(self) -> bool:
        """Whether a writer of this node has moved since the last catch-up; a memory read a shard."""
        return self._node.behind() or any(one.behind() for one in self._here.values())

    def catch_up(self) -> None:
        """As `StateReader.catch_up`; a shard that cannot be followed fails those alone who want it."""
        for one in self._here.values():
            one.catch_up()
        if self._node.behind():
            self._node.catch_up()

    # --- histories

    def histories(self, keys: Sequence[Key]) -> list[UserHistory]:
        """One history a key.

        Raises:
            StateUnavailable: one of them needs a shard that is not here or cannot be read; `gather` asks its owner.
        """
        return [one_of(one) for one in joined(keys, self._settings, self._look).histories(self._since())]

    async def gather(self, keys: Sequence[Key], timeout_s: float) -> StateReader:
        """The state with the histories of these keys, each shard of another node asked once for all of them.

        A history that cannot be had raises StateUnavailable when it is read, and only for whoever reads it.
        """
        join = Join(keys, self._settings.shards, self._settings.max_history)
        steps, until = join.steps(), time.monotonic() + timeout_s
        with contextlib.suppress(StopIteration):
            wanted = next(steps)
            while True:
                wanted = steps.send(await self._everywhere(wanted, until))
        return Gathered(self, dict(zip(keys, join.histories(self._since()), strict=True)))

    async def _everywhere(self, wanted: Wanted, until: float) -> dict[int, Sequence[Found] | StateUnavailable]:
        numbers = list(wanted)
        found = await asyncio.gather(*(self._ask(number, wanted[number], until) for number in numbers))
        return dict(zip(numbers, found, strict=True))

    def _look(self, number: int, names: Sequence[bytes]) -> Sequence[Found] | StateUnavailable:
        one = self._here.get(number)
        if one is None:
            return _not_here(number)
        try:
            return one.look(names)
        except StateUnavailable as error:
            return error

    async def _ask(self, number: int, names: Sequence[bytes], until: float) -> Sequence[Found] | StateUnavailable:
        if number in self._here:
            return self._look(number, names)
        left = until - time.monotonic()
        try:
            async with asyncio.timeout(left):
                looked = await self.owners.look(number, names)
        except TimeoutError:
            return StateUnavailable(f"shard {number}: its owner said nothing for {left:.3f} s")
        except StateUnavailable as error:
            return error
        self._heard[number] = looked
        return looked.found

    async def hear(self, number: int, timeout_s: float) -> dict[int, int]:
        """Partition of `events` → next offset that the shard lacks, as its owner says.

        Raises:
            StateUnavailable: it does not say.
        """
        found = await self._ask(number, (), time.monotonic() + timeout_s)
        if isinstance(found, StateUnavailable):
            raise found
        return self._heard[number].applied if number not in self._here else {}

    def _since(self) -> int | None:
        """As of all shards' watermark, as far as this node has heard of the others'."""
        known = [one.replica.since() for one in self._here.values()] + [one.since for one in self._heard.values()]
        return max((since for since in known if since is not None), default=None)

    # --- the rest

    def user_columns(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        return self._node.user_columns(user_ids)

    def item(self, item_id: str) -> ItemChange | None:
        return self._node.item(item_id)

    def item_changes(self, after: int) -> list[ItemChange]:
        return self._node.item_changes(after)

    def item_sequence(self) -> int:
        return self._node.item_sequence()

    def merged_into(self, session_id: str) -> str | None:
        """The user whom a session was merged into; raises StateUnavailable where its shard is not here."""
        return _user_of(_whole(self._look(shard_of(session_id, self._settings.shards), [session_key(session_id)])))

    async def merged_anywhere(self, session_id: str, timeout_s: float) -> str | None:
        """`merged_into`, asking the session's owner."""
        number = shard_of(session_id, self._settings.shards)
        return _user_of(_whole(await self._ask(number, [session_key(session_id)], time.monotonic() + timeout_s)))

    def applied(self, topic: str, partition: int) -> int:
        """As `StateReader.applied`; of another node's shard 0."""
        if topic != EVENTS:
            return self._node.applied(topic, partition)
        one = self._here.get(self.shard_of_partition(partition))
        return one.replica.applied(topic, partition) if one is not None else 0

    def shard_of_partition(self, partition: int) -> int:
        """The shard that reads a partition of `events`."""
        return partition % self._settings.shards

    def as_of(self) -> int:
        """The highest watermark of the shards, as far as this node has heard of the others'."""
        known = [one.replica.as_of() for one in self._here.values()]
        return max([0, *known, *(one.as_of for one in self._heard.values())])

    def lag(self) -> int:
        """Messages that this node's writers have not applied; -1: one of them cannot tell."""
        lags = [replica.lag() for replica in self._replicas()]
        return -1 if -1 in lags else sum(lags)

    def jumped(self) -> int:
        """Messages of this node's databases that the log did not hold any more."""
        return sum(replica.jumped() for replica in self._replicas())

    def shortage(self) -> Shortage | None:
        return next((found for replica in self._replicas() if (found := replica.shortage()) is not None), None)

    def stopped(self) -> str | None:
        """Why a writer of this node does not write; None: all do."""
        return next((line for replica in self._replicas() if (line := replica.stopped()) is not None), None)

    def failing(self) -> dict[int, str]:
        """Shards of this node that cannot be read, and why."""
        return {number: str(one.error) for number, one in self._here.items() if one.error is not None}

    def disk(self) -> tuple[int, int]:
        return self._node.disk()  # what its writer counts holds the shards too

    def writer_seen_ms(self) -> int:
        """When the writer of this node that has been silent for longest was seen."""
        return min(replica.writer_seen_ms() for replica in self._replicas())

    def _replicas(self) -> Iterable[StateReplica]:
        return [self._node, *(one.replica for one in self._here.values())]


class Gathered:
    """A `ShardedState` with some histories at hand, for one micro-batch."""

    def __init__(self, state: ShardedState, histories: dict[Key, UserHistory | StateUnavailable]) -> None:
        self._state, self._histories = state, histories

    def histories(self, keys: Sequence[Key]) -> list[UserHistory]:
        """One a key; raises StateUnavailable where one of them could not be had."""
        return [one_of(self._histories[key]) for key in keys]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def _whole(found: Sequence[Found] | StateUnavailable) -> Found:
    if isinstance(found, StateUnavailable):
        raise found
    return found[0]


def _user_of(found: Found) -> str | None:
    link = Link.of(found.merged)
    return link.user_id if link is not None else None


def _not_here(number: int) -> StateUnavailable:
    return StateUnavailable(f"shard {number}: found it on another node, wanted its owner to be asked")


def open_reader(home: Path, name: str, settings: StateSettings) -> "StateReplica | ShardedState":
    """What a command reads the state of this node with: all shards that are in this home."""
    if settings.placement == "node":
        return StateReplica.of_home(home, name)
    reader = ShardedState(home, name, settings)
    reader.keep([n for n in range(settings.shards) if StatePaths.of(home).shard(n).position.exists()])
    return reader
