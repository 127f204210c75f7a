"""The change of bundle in two phases: everybody loads the new one beside the old, then all gateways flip.

The registry's aliases are the only truth about what is live: the coordinator moves them by compare-and-swap between
the two phases, and reads its unfinished promotions from there when it comes back after a kill.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from app.bundles.gate import BEFORE, SOUND, Admission, admit, admit_rollback
from app.bundles.registry import ENDED, Promotion, Registry
from app.errors import Conflict, GateRefused, MantaError, NotFound
from app.settings import Settings
from deployments.aftercare import Aftercare, Ctr
from deployments.examination import Examination, Smoke
from deployments.records import Records
from deployments.rollout import EXPIRES_S, Orders, Report, Rollout

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 300.0
FLIP_TIMEOUT_S = 30.0
REGISTRY_POLL_S = 1.0
# Whoever asks for a promotion waits this long for the verdict on its files: most are known by then.
VERDICT_S = 2.0

Publish = Callable[[Promotion], object]
# Of a promotion that is carried out: None once its files are found sound (or it failed), else why they are refused.
Verdict = asyncio.Future[GateRefused | None]


class Swap:
    """Promotions over one registry and the replicas that join. Plain Python: the actor around it is below.

    Args:
        smoke: answers one request from a bundle's folder; raises where that fails.
        publish: told of each promotion that went live (the topic `bundles.published`).
        ctr: whether clicks say that what went live does harm.
        settle_s: how long after its start the coordinator waits for replicas to join before it counts them.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        smoke: Smoke | None = None,
        publish: Publish | None = None,
        ctr: Ctr | None = None,
        settle_s: float = EXPIRES_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        self.rollout = Rollout()
        self._registry, self._settings = registry, settings
        self._publish = publish
        self._settled_at = time.monotonic() + settle_s
        self._load_timeout_s = load_timeout_s
        self._records = Records(registry)
        self._aftercare = Aftercare(
            self._records,
            self.rollout,
            settings.promotion,
            lambda surface, because: self.rollback(surface, None, because),
            ctr,
        )
        self._examination = Examination(self._records, settings, smoke)
        self._admitting = asyncio.Lock()
        self._verdicts: dict[str, Verdict] = {}  # by promotion that was ever carried out here
        self._loading: dict[str, int] = {}  # bundle: promotions that want it loaded
        self._folders: dict[str, str | None] = {}  # by bundle; None: not registered any more
        self._version = -1
        self._live: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Reads the registry, takes up what a killed coordinator left behind, and watches the registry from then on."""
        loading = await asyncio.to_thread(self._registry.promotions, 1000, "loading")
        live = await asyncio.to_thread(self._registry.promotions, 1000, "live")
        await self._read_registry()
        for promotion in reversed(loading):
            logger.warning("promotion %s is taken up again", promotion.id)
            self._begin(promotion)
        for promotion in filter(self._aftercare.is_due, live):
            logger.warning("promotion %s is watched again", promotion.id)
            self._spawn(self._watch_again(promotion))
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
        """Admits a bundle and begins its promotion, or joins the one that is under way.

        Raises:
            NotFound, Conflict, GateRefused: it is not admitted, or its files are refused within `VERDICT_S`.
        """
        async with self._admitting:  # of two calls at once the second joins
            admission = await asyncio.to_thread(
                admit,
                self._registry,
                self._settings,
                bundle,
                surfaces,
                force=force,
                expected=expected,
                joins=True,
                total=len(self.rollout.members()),
            )
        return await self._admitted(admission, VERDICT_S)

    async def rollback(self, surface: str, within_s: float | None = VERDICT_S, because: str | None = None) -> Promotion:
        """Begins the way back to the bundle that was live before, or joins the one that is under way.

        Args:
            within_s: how long to wait for the verdict on its files; None: until it is there.
            because: why, for the record.

        Raises:
            NotFound: unknown surface, or nothing was live before.
            GateRefused: that bundle is damaged.
        """
        async with self._admitting:
            admission = await asyncio.to_thread(
                admit_rollback,
                self._registry,
                surface,
                joins=True,
                total=len(self.rollout.members()),
                because=because,
            )
        return await self._admitted(admission, within_s)

    async def _admitted(self, admission: Admission, within_s: float | None) -> Promotion:
        promotion = admission.promotion
        if promotion.state in ENDED:
            return promotion
        verdict = self._begin(promotion)
        await asyncio.wait({verdict}, timeout=within_s)
        refusal = verdict.result() if verdict.done() else None
        if refusal is not None:
            raise refusal
        return promotion

    def _begin(self, promotion: Promotion) -> Verdict:
        """Carries it out in the background, once."""
        if promotion.id not in self._verdicts:
            self._verdicts[promotion.id] = asyncio.get_running_loop().create_future()
            self._spawn(self._carry_out(promotion, self._verdicts[promotion.id]))
        return self._verdicts[promotion.id]

    async def _carry_out(self, promotion: Promotion, verdict: Verdict) -> None:
        """The look at its files, then both phases."""
        try:
            known = promotion.figures.get(SOUND) or await self._has_moved(promotion)
            refusal = None if known else await self._examination.refusal(promotion)
            verdict.set_result(refusal)
            if refusal is None:
                await self._swap(await self._records.ask(self._registry.promotion, promotion.id))
        except Exception as error:
            await self._fail(promotion, error)
        finally:
            if not verdict.done():
                verdict.set_result(None)

    async def _swap(self, promotion: Promotion) -> None:
        """Both phases. Whatever goes wrong before the alias has moved ends it, with what was live before still live;
        whatever goes wrong afterwards, it is live.
        """
        bundle = promotion.bundle
        self._loading[bundle] = self._loading.get(bundle, 0) + 1
        try:
            try:
                if not await self._has_moved(promotion):  # a coordinator was killed right after
                    await self._load_and_move(promotion)
            except Exception as error:
                if not await self._has_moved(promotion):
                    raise
                logger.warning("promotion %s is live although: %s", promotion.id, error)
            await self._go_live(promotion)
        finally:
            self._loading[bundle] -= 1
            if not self._loading[bundle]:
                del self._loading[bundle]
            with contextlib.suppress(MantaError):  # the watch gives them too
                await self._give_orders()

    async def _has_moved(self, promotion: Promotion) -> bool:
        live = (await self._records.ask(self._registry.aliases)).live
        return all(live.get(surface) == promotion.bundle for surface in promotion.surfaces)

    async def _load_and_move(self, promotion: Promotion) -> None:
        """Phase one and the move. Raises Conflict where something else is live than what was when it was admitted."""
        await self._give_orders()
        await self._wait_for_joiners()
        await self._load_everywhere(promotion)
        await self._move(promotion)

    async def _move(self, promotion: Promotion) -> None:
        """Surfaces on which another promotion has put the same bundle (meanwhile) are left as they are."""
        bundle, before = promotion.bundle, promotion.figures[BEFORE]
        there: set[str] | None = None
        while True:
            live = (await asyncio.to_thread(self._registry.aliases)).live
            found = {surface for surface in before if live.get(surface) == bundle}
            try:
                expected = {surface: bundle if surface in found else was for surface, was in before.items()}
                await asyncio.to_thread(self._registry.move, bundle, expected)
                return
            except Conflict:
                if found == there:
                    raise
                there = found

    async def _wait_for_joiners(self) -> None:
        left = self._settled_at - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)

    async def _load_everywhere(self, promotion: Promotion) -> None:
        """Raises Conflict where one replica cannot, or does not in time."""
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
                if await self._records.note(promotion.id, loaded=now[0], total=now[1]) is None:
                    raise Conflict(f"promotion {promotion.id} has ended already")
            if done or time.monotonic() > deadline:
                break
        if (failure := rollout.failure(bundle)) is not None:
            raise Conflict(f"{bundle} could not be loaded everywhere: {failure}")
        if not done:
            raise Conflict(f"{bundle} was loaded by {said[0]} of {said[1]} replicas in {self._load_timeout_s:g} s")

    async def _go_live(self, promotion: Promotion) -> None:
        """Phase two, after the move: the wait for the flip is only for saying so at the right moment."""
        former = self._aftercare.former(promotion)
        try:
            await self._flip_everywhere(promotion)
            if promotion.kind == "rollback":
                await self._records.ask(self._aftercare.mark_rolled_back, promotion)
        except Exception:
            logger.exception("promotion %s is live; what goes with it failed", promotion.id)
        loaded, total = self.rollout.loaded(promotion.bundle)
        figures = promotion.figures | {SOUND: True} | self._aftercare.figures(promotion, former)
        live = await self._records.note(promotion.id, state="live", loaded=loaded, total=total, figures=figures)
        if live is None:
            return
        if self._aftercare.is_due(live):
            self._spawn(self._aftercare.watch(live))
        if self._publish is not None:
            try:
                await asyncio.to_thread(self._publish, live)
            except Exception:
                logger.exception("promotion %s is not published", promotion.id)

    async def _flip_everywhere(self, promotion: Promotion) -> None:
        """Orders it by what the registry says, or where that does not answer now by what was just moved."""
        try:
            await self._read_registry()
        except MantaError as error:
            logger.warning("the registry does not answer: %s", error)
            self._live.update(dict.fromkeys(promotion.surfaces, promotion.bundle))
            await self._give_orders()
        await self._wait_for_joiners()
        await self.rollout.until(lambda: self.rollout.flipped(promotion.bundle, promotion.surfaces), FLIP_TIMEOUT_S)

    async def _watch_again(self, promotion: Promotion) -> None:
        await self._wait_for_joiners()
        await self._aftercare.watch(promotion)

    async def _fail(self, promotion: Promotion, error: Exception) -> None:
        known = isinstance(error, MantaError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        logger.error("promotion %s: failed: %s", promotion.id, reason, exc_info=None if known else error)
        await self._records.note(promotion.id, state="failed", reason=reason)

    # Orders

    async def _read_registry(self) -> None:
        found = await asyncio.to_thread(self._registry.aliases)
        self._version = found.version
        self._live = found.live
        await self._give_orders()

    async def _give_orders(self) -> None:
        """Everybody holds what is live, what is being promoted and what a gateway still answers from."""
        while unknown := self._wanted() - self._folders.keys():
            for bundle in unknown:
                self._folders[bundle] = await asyncio.to_thread(self._folder, bundle)
        live = {surface: bundle for surface, bundle in self._live.items() if surface in self._settings.surfaces}
        load = {bundle: folder for bundle in sorted(self._wanted()) if (folder := self._folders[bundle]) is not None}
        await self.rollout.order(live, load)

    def _wanted(self) -> set[str]:
        return {*self._live.values(), *self._loading, *self.rollout.held()}

    def _folder(self, bundle: str) -> str | None:
        try:
            return str(self._registry.bundle(bundle).folder)
        except NotFound:
            return None

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
