"""The change of bundle in two phases: everybody loads the new one beside the old, then all gateways flip.

The registry's aliases are the only truth about what is live: the coordinator moves them by compare-and-swap between
the two phases, and reads its unfinished promotions from there when it comes back after a kill.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.bundles.gate import Admission, admit, admit_rollback
from app.bundles.manifest import verify
from app.bundles.registry import ENDED, Promotion, Registry
from app.errors import Conflict, MantaError
from app.settings import Settings
from deployments.health import harm, is_harmful
from deployments.rollout import EXPIRES_S, Orders, Report, Rollout

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 300.0
FLIP_TIMEOUT_S = 30.0
REGISTRY_POLL_S = 1.0
# How long a promotion is watched after it went live.
WATCH_S = 60.0
# The figures of a promotion keep what was live before, so that one that was interrupted goes on as it was admitted.
BEFORE = "before"

Smoke = Callable[[Path], object]
Publish = Callable[[Promotion], object]


class Swap:
    """Promotions over one registry and the replicas that join. Plain Python: the actor around it is below.

    Args:
        smoke: answers one request from a bundle's folder; raises where that fails.
        publish: told of each promotion that went live (the topic `bundles.published`).
        settle_s: how long after its start the coordinator waits for replicas to join before it counts them.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        smoke: Smoke | None = None,
        publish: Publish | None = None,
        settle_s: float = EXPIRES_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        self.rollout = Rollout()
        self._registry, self._settings = registry, settings
        self._smoke, self._publish = smoke, publish
        self._settled_at = time.monotonic() + settle_s
        self._load_timeout_s = load_timeout_s
        self._loading: dict[str, int] = {}  # bundle: promotions that want it loaded
        self._version = -1
        self._live: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Reads the registry, takes up what a killed coordinator left behind, and watches the registry from then on."""
        await self._read_registry()
        for promotion in reversed(await asyncio.to_thread(self._registry.promotions, 1000, "loading")):
            logger.warning("promotion %s is taken up again", promotion.id)
            self._spawn(self._carry_out(promotion, promotion.figures.get(BEFORE)))
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Ends the tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def exchange(self, report: Report, version: str | None) -> Orders:
        """A replica's long poll: its report in, new orders out."""
        return await self.rollout.exchange(report, version)

    async def promote(
        self, bundle: str, surfaces: Sequence[str] | None, force: bool, expected: str | None
    ) -> Promotion:
        """Admits a bundle and begins its promotion; returns as soon as it is admitted.

        Raises:
            NotFound, Conflict, GateRefused: it is not admitted.
        """
        registry, settings = self._registry, self._settings
        folder = (await asyncio.to_thread(registry.bundle, bundle)).folder
        smoke = self._smoke
        admission = await asyncio.to_thread(
            admit,
            registry,
            settings,
            bundle,
            surfaces,
            force=force,
            expected=expected,
            verify=lambda: verify(folder),
            smoke=None if smoke is None else lambda: smoke(folder),
            total=len(self.rollout.members()),
        )
        return await self._admitted(admission)

    async def rollback(self, surface: str) -> Promotion:
        """Begins the way back to the bundle that was live before.

        Raises:
            NotFound: unknown surface, or nothing was live before.
            GateRefused: that bundle is damaged.
        """
        registry = self._registry
        admission = await asyncio.to_thread(
            admit_rollback,
            registry,
            surface,
            verify=lambda bundle: verify(registry.bundle(bundle).folder),
            total=len(self.rollout.members()),
        )
        return await self._admitted(admission)

    async def _admitted(self, admission: Admission) -> Promotion:
        promotion = admission.promotion
        if promotion.state in ENDED:
            return promotion
        figures = {**promotion.figures, BEFORE: admission.expected}
        promotion = await asyncio.to_thread(self._registry.update_promotion, promotion.id, figures=figures)
        self._spawn(self._carry_out(promotion, admission.expected))
        return promotion

    async def _carry_out(self, promotion: Promotion, before: Mapping[str, str | None] | None) -> None:
        """Both phases; whatever goes wrong ends the promotion as failed, with what was live before still live."""
        self._loading[promotion.bundle] = self._loading.get(promotion.bundle, 0) + 1
        try:
            await self._give_orders()
            await self._wait_for_joiners()
            await self._load_everywhere(promotion)
            live = (await asyncio.to_thread(self._registry.aliases)).live
            if before is None:  # killed between the admission and the note of what was live
                before = {surface: live.get(surface) for surface in promotion.surfaces}
            moved = {surface for surface in before if live.get(surface) == promotion.bundle}
            expected = {surface: promotion.bundle if surface in moved else was for surface, was in before.items()}
            await asyncio.to_thread(self._registry.move, promotion.bundle, expected)
            await self._read_registry()
            await self._flip_everywhere(promotion, before)
        except MantaError as error:
            await self._end(promotion, "failed", str(error))
        except Exception as error:
            logger.exception("promotion %s failed", promotion.id)
            await self._end(promotion, "failed", f"{type(error).__name__}: {error}")
        finally:
            self._loading[promotion.bundle] -= 1
            if not self._loading[promotion.bundle]:
                del self._loading[promotion.bundle]
            await self._give_orders()

    async def _wait_for_joiners(self) -> None:
        left = self._settled_at - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)

    async def _load_everywhere(self, promotion: Promotion) -> None:
        """Phase one. Raises Conflict where one replica cannot, or does not in time."""
        bundle, rollout = promotion.bundle, self.rollout

        def settled() -> bool:
            loaded, total = rollout.loaded(bundle)
            return loaded == total or rollout.failure(bundle) is not None

        said: tuple[int, int] | None = None
        deadline = time.monotonic() + self._load_timeout_s
        while True:
            done = await rollout.until(settled, 1.0)
            now = rollout.loaded(bundle)
            if now != said:
                said = now
                await asyncio.to_thread(self._registry.update_promotion, promotion.id, loaded=now[0], total=now[1])
            if done or time.monotonic() > deadline:
                break
        if (failure := rollout.failure(bundle)) is not None:
            raise Conflict(f"{bundle} could not be loaded everywhere: {failure}")
        if not done:
            raise Conflict(f"{bundle} was loaded by {said[0]} of {said[1]} replicas in {self._load_timeout_s:g} s")

    async def _flip_everywhere(self, promotion: Promotion, before: Mapping[str, str | None]) -> None:
        """Phase two, after the alias has moved: it is live; the wait is only for saying so at the right moment."""
        await self.rollout.until(lambda: self.rollout.flipped(promotion.bundle, promotion.surfaces), FLIP_TIMEOUT_S)
        loaded, total = self.rollout.loaded(promotion.bundle)
        live = await asyncio.to_thread(
            self._registry.update_promotion, promotion.id, state="live", loaded=loaded, total=total
        )
        if promotion.kind == "rollback":
            await asyncio.to_thread(self._mark_rolled_back, promotion, {bundle for bundle in before.values() if bundle})
        if self._publish is not None:
            await asyncio.to_thread(self._publish, live)
        if promotion.kind == "promote" and not promotion.force:
            self._spawn(self._watch_over(promotion, before))

    async def _watch_over(self, promotion: Promotion, before: Mapping[str, str | None]) -> None:
        """Takes a promotion back by itself where most of its answers fail, from the surfaces that still show it."""
        bundle, rollout = promotion.bundle, self.rollout
        start = rollout.tallies(bundle)
        if not await rollout.until(lambda: is_harmful(harm(start, rollout.tallies(bundle))), WATCH_S):
            return
        found = harm(start, rollout.tallies(bundle))
        reason = f"{found.failed} of {found.asked} answers failed"
        logger.error("promotion %s is taken back: %s", promotion.id, reason)
        try:
            live = (await asyncio.to_thread(self._registry.aliases)).live
            for surface in promotion.surfaces:
                if live.get(surface) == bundle and before.get(surface) not in (None, bundle):
                    back = await self.rollback(surface)
                    await self._note(promotion, "rolled_back", f"{reason}; {back.id}")
        except MantaError:
            logger.exception("promotion %s could not be taken back", promotion.id)

    def _mark_rolled_back(self, rollback: Promotion, bundles: set[str]) -> None:
        """The newest promotion that had put the bundle there is rolled back by this one."""
        for earlier in self._registry.promotions(100, "live"):
            on_surface = set(earlier.surfaces) & set(rollback.surfaces)
            if earlier.id != rollback.id and earlier.bundle in bundles and on_surface:
                self._registry.update_promotion(earlier.id, state="rolled_back", reason=f"by {rollback.id}")
                return

    async def _end(self, promotion: Promotion, state: Any, reason: str) -> None:
        logger.error("promotion %s: %s: %s", promotion.id, state, reason)
        await self._note(promotion, state, reason)

    async def _note(self, promotion: Promotion, state: Any, reason: str) -> None:
        try:
            await asyncio.to_thread(self._registry.update_promotion, promotion.id, state=state, reason=reason)
        except MantaError:
            logger.exception("promotion %s could not be set to %s", promotion.id, state)

    # Orders

    async def _read_registry(self) -> None:
        found = await asyncio.to_thread(self._registry.aliases)
        self._version = found.version
        self._live = found.live
        await self._give_orders()

    async def _give_orders(self) -> None:
        wanted = {*self._live.values(), *self._loading, *(self.rollout.held() - set(self._live.values()))}
        folders = {row.id: str(row.folder) for row in await asyncio.to_thread(self._registry.bundles)}
        live = {surface: bundle for surface, bundle in self._live.items() if surface in self._settings.surfaces}
        await self.rollout.order(live, {bundle: folders[bundle] for bundle in sorted(wanted) if bundle in folders})

    async def _watch(self) -> None:
        """Aliases may also be moved by others (a command while nothing was up, another coordinator's last act)."""
        while True:
            await asyncio.sleep(REGISTRY_POLL_S)
            try:
                if await asyncio.to_thread(self._registry.version) != self._version:
                    await self._read_registry()
                else:
                    await self._give_orders()  # what gateways no longer hold may go
            except MantaError as error:
                logger.warning("the registry does not answer: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
