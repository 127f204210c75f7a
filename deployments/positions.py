"""Waiting until what was sent to Kafka is applied: on this node by its shared position, elsewhere by its writers.

Every gateway catches up with its node's position before it answers, so that what a node's position has passed is in
the next answer of any gateway there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

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


def _behind(partitions: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return any(partitions.get(partition, 0) < end for partition, end in ends.items())
