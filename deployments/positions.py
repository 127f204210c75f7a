"""Waiting until what was sent to Kafka is applied: on this node by its shared position, elsewhere by its writers.

Every gateway catches up with its node's position before it answers, so that what a node's position has passed is in
the next answer of any gateway there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.state.sharded import ShardedState

POLL_S = 0.001
OTHERS_POLL_S = 0.05
NO_ANSWER = "the supervisor of the other nodes' state writers"

# Node to topic to partition to next offset that is not applied there; only of other nodes.
Others = Callable[[], Awaitable[Mapping[str, Mapping[str, Mapping[int, int]]]]]


class Applied(Protocol):
    """The node's shared position (`app.state.reader.StateReader`)."""

    def applied(self, topic: str, partition: int) -> int: ...


async def _nobody() -> Mapping[str, Mapping[str, Mapping[int, int]]]:
    return {}


class Positions:
    """All nodes' positions. `others` is asked only after this node's has passed."""

    def __init__(self, here: Applied, others: Others = _nobody) -> None:
        self._here, self._others = here, others

    async def passed(self, topic: str, sent: Mapping[int, int], timeout_s: float) -> list[str]:
        """Waits until what was sent (partition → highest offset) is applied everywhere.

        Returns:
            Who has not, after `timeout_s`, whether or not anybody answers; empty: everybody has.
        """
        ends = {partition: offset + 1 for partition, offset in sent.items()}
        deadline = time.monotonic() + timeout_s
        while not self._reached(topic, ends):
            if time.monotonic() >= deadline:
                return ["the state writer of this node"]
            await asyncio.sleep(POLL_S)
        late = [NO_ANSWER]
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    others = await self._others()
            except TimeoutError:
                return late
            late = [f"the state writer of node {one}" for one in others if _behind(others[one].get(topic, {}), ends)]
            if not late or time.monotonic() >= deadline:
                return late
            await asyncio.sleep(OTHERS_POLL_S)

    def _reached(self, topic: str, ends: Mapping[int, int]) -> bool:
        return all(self._here.applied(topic, partition) >= end for partition, end in ends.items())


class ShardPositions(Positions):
    """`Positions` where events are applied by the owners of their shards alone."""

    def __init__(self, state: ShardedState, others: Others = _nobody) -> None:
        super().__init__(state, others)
        self._state = state

    async def passed(self, topic: str, sent: Mapping[int, int], timeout_s: float) -> list[str]:
        """As `Positions.passed`."""
        if topic != EVENTS:
            return await super().passed(topic, sent, timeout_s)
        deadline = time.monotonic() + timeout_s
        late = {partition: offset + 1 for partition, offset in sent.items()}
        while True:
            away = {self._state.shard_of_partition(partition) for partition in late} - self._state.here
            left = max(0.0, deadline - time.monotonic())
            heard = dict(zip(away, await asyncio.gather(*(self._hear(one, left) for one in away)), strict=True))
            late = {partition: end for partition, end in late.items() if self._at(partition, heard) < end}
            if not late or time.monotonic() >= deadline:
                return [f"the writer of shard {self._state.shard_of_partition(partition)}" for partition in late]
            await asyncio.sleep(OTHERS_POLL_S if away else POLL_S)

    def _at(self, partition: int, heard: Mapping[int, Mapping[int, int]]) -> int:
        elsewhere = heard.get(self._state.shard_of_partition(partition))
        return self._state.applied(EVENTS, partition) if elsewhere is None else elsewhere.get(partition, 0)

    async def _hear(self, shard: int, timeout_s: float) -> Mapping[int, int]:
        try:
            return await self._state.hear(shard, timeout_s)
        except StateUnavailable:
            return {}


def _behind(partitions: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return any(partitions.get(partition, 0) < end for partition, end in ends.items())
