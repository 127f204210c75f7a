"""A `StateReader` over the shards: those of this node in process, the others by asking their owners."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.settings import StateSettings
from app.state.batch import session_key
from app.state.joining import Found, Join, Wanted, joined, one_of
from app.state.layout import StatePaths
from app.state.merging import Link
from app.state.owners import Elsewhere, Nowhere, OtherShards, Owners
from app.state.position import gone_shards
from app.state.reader import ItemChange, Kind, UserHistory
from app.state.replica import StateReplica
from app.state.room import Shortage
from app.state.shard_here import ShardHere
from app.state.shares import beside, shard_of

Key = tuple[Kind, str]


class ShardedState:
    """The state as a node sees it. Every method may be called from any thread, those that wait from an event loop."""

    def __init__(self, home: Path, name: str, settings: StateSettings, owners: Owners | None = None) -> None:
        """Takes the MANTA_HOME, the name of this reader's folders, and whom to ask; None: nobody."""
        self._home, self._name, self._settings = home, name, settings
        self._away = OtherShards(owners or Nowhere())
        self._node = StateReplica.of_home(home, name, beside(settings.shards))
        self._here: dict[int, ShardHere] = {}

    def keep(self, here: Collection[int]) -> None:
        """From now on these shards are read here, and no others."""
        before = self._here
        self._here = {
            number: before.get(number) or ShardHere(self._home, self._name, number, self._settings.shards)
            for number in sorted(here)
        }
        for number in before.keys() - self._here.keys():
            before[number].replica.close()

    @property
    def owners(self) -> Owners:
        """Who is asked for shards that are not here."""
        return self._away.owners

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

    def at_hand(self, keys: Sequence[Key]) -> "Gathered":
        """The state with those of these histories that lie on this node alone; `away` are the others."""
        found = joined(keys, self._settings, self._look).histories(self._since())
        return Gathered(self, dict(zip(keys, found, strict=True)))

    async def gather(self, keys: Sequence[Key], timeout_s: float) -> "Gathered":
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
            return Elsewhere(number)
        try:
            return one.look(names)
        except StateUnavailable as error:
            return error

    async def _ask(self, number: int, names: Sequence[bytes], until: float) -> Sequence[Found] | StateUnavailable:
        if number in self._here:
            return self._look(number, names)
        looked = await self._away.ask(number, names, until)
        return looked if isinstance(looked, StateUnavailable) else looked.found

    async def hear(self, number: int, timeout_s: float) -> Mapping[int, int]:
        """Partition of `events` → next offset that a shard of another node lacks, as its owner says.

        Raises:
            StateUnavailable: it does not say.
        """
        looked = await self._away.ask(number, (), time.monotonic() + timeout_s)
        if isinstance(looked, StateUnavailable):
            raise looked
        return looked.applied

    def _since(self) -> int | None:
        """As of all shards' watermark, as far as this node has heard of the others'."""
        known = [*(one.replica.since() for one in self._here.values()), *self._away.since()]
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
        return max([0, *(one.replica.as_of() for one in self._here.values()), *self._away.as_of()])

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

    @property
    def away(self) -> set[Key]:
        """Whose histories, or parts of them, lie on other nodes that were not asked."""
        return {key for key, history in self._histories.items() if isinstance(history, Elsewhere)}

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


def open_reader(home: Path, name: str, settings: StateSettings) -> "StateReplica | ShardedState":
    """What a command reads the state of this node with: all shards that are written here."""
    if settings.placement == "node":
        return StateReplica.of_home(home, name)
    reader, gone = ShardedState(home, name, settings), gone_shards(home)
    reader.keep([n for n in range(settings.shards) if n not in gone and StatePaths.of(home).shard(n).position.exists()])
    return reader
