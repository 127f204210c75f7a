"""The bundles that one replica has loaded, beside each other, and its part in a change of bundle."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from app.errors import MantaError
from deployments.health import Tally
from deployments.rollout import Kind, Orders, Report

logger = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")

RETRY_S = 0.5
# A bundle that could not be loaded is tried again after this, as long as it is wanted.
RETRY_LOAD_S = 5.0
# A replica takes requests only once it has what is live, unless that takes longer than this.
FIRST_LOAD_S = 60.0

Exchange = Callable[[Report, str | None], Awaitable[Orders]]


class BundleStore(Generic[Loaded]):
    """Loads what the orders name, drops what they no longer name and no request uses. Belongs to one event loop.

    Attributes:
        loaded: by bundle id.
        live: surface to bundle, as ordered; a surface appears once its bundle is loaded.
    """

    def __init__(
        self,
        kind: Kind,
        load: Callable[[str, Path], Loaded],
        *,
        flip: Callable[[Mapping[str, str]], None] = lambda _: None,
        holds: Callable[[], Iterable[str]] = tuple,
        tallies: Callable[[Iterable[str]], Mapping[str, Tally]] = lambda _: {},
        drop: Callable[[Loaded], None] = lambda _: None,
    ) -> None:
        """`load` runs in a thread, the others on the loop.

        Args:
            flip: told what to answer from now on (surface to bundle, all of them loaded).
            holds: bundles that requests in flight still name.
            tallies: how the answers of the loaded bundles went.
            drop: gives up what a bundle holds besides memory.
        """
        self.member = f"{kind}-{secrets.token_hex(4)}"
        self.kind: Kind = kind
        self.loaded: dict[str, Loaded] = {}
        self.live: dict[str, str] = {}
        self.orders = Orders("")
        self._load, self._flip, self._holds, self._drop = load, flip, holds, drop
        self._tallies = tallies
        self._failed: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._joined = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def report(self) -> Report:
        """What this replica has and does."""
        gateway = self.kind == "gateway"
        return Report(
            self.member,
            self.kind,
            frozenset(self.loaded),
            dict(self._failed),
            dict(self.live) if gateway else {},
            frozenset(self._holds()) if gateway else frozenset(),
            dict(self._tallies(self.loaded)) if gateway else {},
        )

    async def follow(self, exchange: Exchange) -> None:
        """Joins the coordinator and obeys until it is cancelled; a coordinator that is away is asked again."""
        reporting = asyncio.create_task(self._report_changes(exchange))
        version: str | None = None
        away = False
        try:
            while True:
                try:
                    orders = await exchange(self.report(), version)
                except Exception as error:  # whatever Ray says of an actor that died or moves
                    if not away:
                        logger.warning("the swap coordinator does not answer: %s", error)
                    away, version = True, None
                    await asyncio.sleep(RETRY_S)
                    continue
                away, version = False, orders.version
                try:
                    self.obey(orders)
                except Exception:  # a full disk, for example: the next orders are obeyed all the same
                    logger.exception("the orders could not be followed; trying again")
                    version = None
                    await asyncio.sleep(RETRY_S)
        finally:
            reporting.cancel()

    async def _report_changes(self, exchange: Exchange) -> None:
        """Says at once what has changed here, past the long poll."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await exchange(self.report(), None)
            except Exception:
                logger.debug("the long poll will report", exc_info=True)

    def obey(self, orders: Orders) -> None:
        """Begins to load what is missing, flips to what is there, drops what may go."""
        self.orders = orders
        self._joined.set()
        for bundle in [bundle for bundle in self._failed if bundle not in orders.load]:
            del self._failed[bundle]
        for bundle, folder in orders.load.items():
            if not (bundle in self.loaded or bundle in self._tasks or bundle in self._failed):
                self._tasks[bundle] = asyncio.create_task(self._take(bundle, Path(folder)))
        self._settle()

    async def ready(self) -> None:
        """Returns once the live bundles are loaded, none is live, or it takes longer than FIRST_LOAD_S."""
        try:
            async with asyncio.timeout(FIRST_LOAD_S):
                await self.joined()
                await self.settled()
        except TimeoutError:
            logger.warning("starting before the live bundles are loaded")

    async def joined(self) -> None:
        """Returns once the first orders have come."""
        await self._joined.wait()

    async def settled(self) -> None:
        """Returns when nothing is being loaded (loaded or failed)."""
        while self._tasks:
            await asyncio.wait(set(self._tasks.values()))

    async def _take(self, bundle: str, folder: Path) -> None:
        try:
            async with self._one_at_a_time:
                if bundle not in self.orders.load:
                    return
                self.loaded[bundle] = await asyncio.to_thread(self._load, bundle, folder)
            self._failed.pop(bundle, None)
            logger.info("bundle %s is loaded", bundle)
        except Exception as error:
            logger.log(
                logging.ERROR if isinstance(error, MantaError) else logging.CRITICAL,
                "bundle %s cannot be loaded",
                bundle,
                exc_info=error,
            )
            self._failed[bundle] = str(error) or type(error).__name__
            asyncio.get_running_loop().call_later(RETRY_LOAD_S, self._failed.pop, bundle, None)
        finally:
            del self._tasks[bundle]
            self._settle()
            self._changed.set()

    def _settle(self) -> None:
        wanted = {surface: bundle for surface, bundle in self.orders.live.items() if bundle in self.loaded}
        # A surface keeps what it has until the bundle ordered for it is there.
        live = {**{name: bundle for name, bundle in self.live.items() if name in self.orders.live}, **wanted}
        if live != self.live:
            self._flip(live)
            self.live = live
            self._changed.set()
        kept = {*self.orders.load, *self.live.values(), *self._holds()}
        for bundle in [bundle for bundle in self.loaded if bundle not in kept]:
            self._drop(self.loaded.pop(bundle))
            logger.info("bundle %s is dropped", bundle)
            self._changed.set()
