"""Shards of other nodes: their owners are asked, within a time, and left alone for a while once they say nothing."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from app.degrade import FAILURES_TO_OPEN, Breaker, StageLeftAlone
from app.errors import StateUnavailable
from app.state.joining import Found

_SLOW_S = 0.02  # an owner that was given less than this and was late has not failed


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


class Elsewhere(StateUnavailable):
    """A shard is on another node, and its owner was not asked."""

    def __init__(self, number: int) -> None:
        super().__init__(f"shard {number}: found it on another node, wanted its owner to be asked")


class OwnerSilent(StateUnavailable, TimeoutError):
    """The owner of a shard has said nothing in time."""


class OwnerLeftAlone(StateUnavailable, StageLeftAlone):
    """The owner of a shard is not asked for a moment: it has said nothing several times."""


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
        raise Elsewhere(shard)


class OtherShards:
    """What owners say of their shards. `ask` belongs to one event loop.

    Attributes:
        owners: who is asked.
        heard: the last answer of each shard that was ever asked.
    """

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self.heard: dict[int, Looked] = {}
        self._breakers: defaultdict[int, Breaker] = defaultdict(Breaker)

    async def ask(self, number: int, names: Sequence[bytes], until: float) -> Looked | StateUnavailable:
        """What a shard has of some keys, or why that is not known by `until` (monotonic seconds)."""
        breaker = self._breakers[number]
        if not breaker.allows():
            return OwnerLeftAlone(
                f"shard {number}: its owner said nothing {FAILURES_TO_OPEN} times, it is asked again in a moment"
            )
        left = until - time.monotonic()
        try:
            async with asyncio.timeout(left):
                looked = await self.owners.look(number, names)
        except TimeoutError:
            if left >= _SLOW_S:
                breaker.failed()
            return OwnerSilent(f"shard {number}: its owner said nothing for {max(left, 0.0):.3f} s")
        except StateUnavailable as error:
            breaker.succeeded()  # whoever answers at once holds nobody up
            return error
        breaker.succeeded()
        self.heard[number] = looked
        return looked

    def since(self) -> list[int | None]:
        """Earliest event time that counts, of each shard that was heard of."""
        return [looked.since for looked in list(self.heard.values())]

    def as_of(self) -> list[int]:
        """The watermark of each shard that was heard of."""
        return [looked.as_of for looked in list(self.heard.values())]
