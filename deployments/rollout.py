"""Who must have which bundle, and who has it: orders go to the replicas by long poll, reports come back.

No Ray and no registry here: the coordinator in `deployments/swap.py` decides, this only tells and counts.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from deployments.health import Tally

Kind = Literal["gateway", "retriever", "ranker"]

POLL_S = 2.0
# A member that has not asked again for this long is dead or cut off, and nobody waits for it.
EXPIRES_S = 5.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What every replica has to do.

    Attributes:
        version: another text whenever anything here is another.
        live: surface to the bundle that gateways answer from.
        load: bundle to its folder: to be held loaded, by stages and gateways; anything else may go.
    """

    version: str
    live: Mapping[str, str] = field(default_factory=dict)
    load: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica has done.

    Attributes:
        loaded: bundles it can answer from (or be asked for).
        failed: bundle to why it could not be loaded.
        live: of a gateway: surface to the bundle that it answers from.
        holds: of a gateway: bundles that a request in flight still names.
        tallies: of a gateway: bundle to how its answers went so far.
    """

    member: str
    kind: Kind
    loaded: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    live: Mapping[str, str] = field(default_factory=dict)
    holds: frozenset[str] = frozenset()
    tallies: Mapping[str, Tally] = field(default_factory=dict)


class Rollout:
    """The members and their orders. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoch = secrets.token_hex(4)  # a coordinator that came back must not look unchanged
        self._count = 0
        self.orders = Orders(f"{self._epoch}-0")
        self._members: dict[str, tuple[Report, float]] = {}
        self._changed = asyncio.Condition()

    def members(self, kind: Kind | None = None) -> list[Report]:
        """Those that are alive."""
        horizon = self._clock() - EXPIRES_S
        for name in [name for name, (_, seen) in self._members.items() if seen < horizon]:
            del self._members[name]
        return [report for report, _ in self._members.values() if kind is None or report.kind == kind]

    async def exchange(self, report: Report, version: str | None) -> Orders:
        """Takes the report; returns the orders once they are others than `version`, or after `POLL_S`."""
        await self._take(report)
        async with self._changed:
            if self.orders.version == version:
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._changed.wait_for(lambda: self.orders.version != version)
                except TimeoutError:
                    pass
        if report.member in self._members:
            self._members[report.member] = (self._members[report.member][0], self._clock())
        return self.orders

    async def leave(self, member: str) -> None:
        """A replica goes in good order."""
        self._members.pop(member, None)
        await self._notify()

    async def _take(self, report: Report) -> None:
        known = self._members.get(report.member)
        self._members[report.member] = (report, self._clock())
        if known is None or known[0] != report:
            await self._notify()

    async def order(self, live: Mapping[str, str], load: Mapping[str, str]) -> None:
        """Changes the orders, where they differ."""
        if dict(live) == dict(self.orders.live) and dict(load) == dict(self.orders.load):
            return
        self._count += 1
        self.orders = Orders(f"{self._epoch}-{self._count}", dict(live), dict(load))
        await self._notify()

    async def until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until the reports say so; False: they did not in time. Looks again as members come, go and expire."""
        deadline = self._clock() + timeout_s
        while not done():
            left = deadline - self._clock()
            if left <= 0:
                return False
            async with self._changed:
                try:
                    async with asyncio.timeout(min(left, 0.5)):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        return True

    def loaded(self, bundle: str) -> tuple[int, int]:
        """(members that have it, members)."""
        members = self.members()
        return sum(bundle in report.loaded for report in members), len(members)

    def failure(self, bundle: str) -> str | None:
        """Why a member cannot load it, if one cannot."""
        for report in self.members():
            if bundle in report.failed:
                return f"{report.kind} {report.member}: {report.failed[bundle]}"
        return None

    def flipped(self, bundle: str, surfaces: Iterable[str]) -> bool:
        """Whether every gateway answers these surfaces from the bundle."""
        wanted = list(surfaces)
        return all(report.live.get(name) == bundle for report in self.members("gateway") for name in wanted)

    def tallies(self, bundle: str) -> dict[str, Tally]:
        """How each gateway's answers from the bundle went."""
        return {report.member: report.tallies[bundle] for report in self.members("gateway") if bundle in report.tallies}

    def held(self) -> set[str]:
        """Bundles that a gateway answers from, or that one of its requests still names."""
        return {bundle for report in self.members("gateway") for bundle in (*report.live.values(), *report.holds)}

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
