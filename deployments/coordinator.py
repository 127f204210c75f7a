"""The swap coordinator as a detached, named Ray actor, and how replicas and commands speak to it."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from app.api.problems import FieldError, Problem, problem_of
from app.bundles.registry import BundleRow, Promotion, open_registry, rfc3339
from app.errors import MantaError
from app.events.messages import Published
from app.events.producer import EventProducer
from app.events.schema import PUBLISHED
from app.settings import Settings
from app.smoke import smoke_apart
from deployments.cluster import NAMESPACE
from deployments.ctr_watch import CtrWatch
from deployments.erasures import Erasures
from deployments.rollout import Orders, Report
from deployments.swap import Swap

logger = logging.getLogger(__name__)

COORDINATOR = "manta-swap-coordinator"
ANSWER_S = 60.0
Outcome = dict[str, Any]


class SwapCoordinator:
    """`Swap` behind Ray: errors cross the process boundary as plain values, under `problem`."""

    def __init__(self, settings: Settings, home: str) -> None:
        self._settings, self._home = settings, Path(home)
        self._registry = open_registry(settings, Path(home))
        self._erasures = Erasures(settings, Path(home))
        self._producer: EventProducer | None = None
        self._swap: Swap | None = None
        self._starting = asyncio.Lock()

    async def exchange(self, report: Report, version: str | None) -> Orders:
        """A replica's long poll."""
        return await (await self._started()).exchange(report, version)

    async def promote(self, bundle: str, surfaces: Sequence[str] | None, force: bool, expected: str | None) -> Outcome:
        """`Promotion.as_json`, or `{"problem": …}`."""
        try:
            promotion = await (await self._started()).promote(bundle, surfaces, force, expected)
        except MantaError as error:
            return _refusal(error)
        return promotion.as_json()

    async def rollback(self, surface: str) -> Outcome:
        """`Promotion.as_json`, or `{"problem": …}`."""
        try:
            promotion = await (await self._started()).rollback(surface)
        except MantaError as error:
            return _refusal(error)
        return promotion.as_json()

    async def promotion(self, promotion: str) -> Outcome:
        """`Promotion.as_json`, or `{"problem": …}`."""
        try:
            return (await asyncio.to_thread(self._registry.promotion, promotion)).as_json()
        except MantaError as error:
            return _refusal(error)

    async def bundles(self) -> list[Outcome]:
        """Every registered bundle, newest first, in short."""
        live = (await asyncio.to_thread(self._registry.aliases)).live
        return [_in_short(row, live) for row in await asyncio.to_thread(self._registry.bundles)]

    async def bundle(self, bundle: str) -> Outcome:
        """A bundle's lineage and metrics, or `{"problem": …}`."""
        try:
            row = await asyncio.to_thread(self._registry.bundle, bundle)
        except MantaError as error:
            return _refusal(error)
        live = (await asyncio.to_thread(self._registry.aliases)).live
        return {**row.manifest, **_in_short(row, live)}

    async def erase(self, user_id: str) -> Outcome:
        """`Erasure.as_json` of a user's erasure that is not done yet, or `{"problem": …}`."""
        try:
            return (await asyncio.to_thread(self._erasures.request, user_id)).as_json()
        except MantaError as error:
            return _refusal(error)

    async def erasure(self, erasure: str) -> Outcome:
        """`Erasure.as_json`, or `{"problem": …}`."""
        try:
            return (await asyncio.to_thread(self._erasures.erasure, erasure)).as_json()
        except MantaError as error:
            return _refusal(error)

    async def _started(self) -> Swap:
        async with self._starting:
            if self._swap is None:
                ctr = CtrWatch(self._settings, self._home, COORDINATOR)
                swap = Swap(self._registry, self._settings, smoke=smoke_apart, publish=self._publish, ctr=ctr)
                await swap.start()
                self._swap = swap
        return self._swap

    def _publish(self, promotion: Promotion) -> None:
        """Best effort: the registry is the truth, the topic only tells others."""
        try:
            if self._producer is None:
                self._producer = EventProducer(self._settings.kafka, max_optional=100)
            message = Published.model_validate(promotion.as_json())
            self._producer.try_send(PUBLISHED, promotion.bundle.encode(), orjson.dumps(message.model_dump()))
        except MantaError as error:
            logger.warning("promotion %s is not published: %s", promotion.id, error)


def ensure_coordinator(settings: Settings, home: Path) -> ActorHandle:
    """The coordinator, started if it is not there; Ray must be joined. `settings` name the broker's address."""
    coordinator = ray.remote(SwapCoordinator).options(
        name=COORDINATOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=1000,
        num_cpus=0,
    )
    return coordinator.remote(settings, str(home))


class Coordinator:
    """A replica's door to the coordinator, which may die and come back."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home
        self._handle: ActorHandle | None = None

    async def exchange(self, report: Report, version: str | None) -> Orders:
        """The long poll. Raises whatever Ray says of an actor that is away."""
        orders: Orders = await (await self._door()).exchange.remote(report, version)
        return orders

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Another call.

        Raises:
            Problem: what the coordinator refused, or 503 while it does not answer.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                outcome = await getattr(await self._door(), method).remote(*arguments)
        except (RayError, TimeoutError) as error:
            raise Problem(
                503, f"the swap coordinator does not answer: {type(error).__name__}", retry_after_s=1
            ) from None
        if isinstance(outcome, dict) and "problem" in outcome:
            raise Problem(**outcome["problem"])
        return outcome

    async def _door(self) -> ActorHandle:
        if self._handle is None:
            self._handle = await asyncio.to_thread(ensure_coordinator, self._settings, self._home)
        return self._handle


def _refusal(error: MantaError) -> Outcome:
    problem = problem_of(error) or Problem(500, str(error))
    errors = [FieldError(*one) for one in problem.errors]
    said = {"status": problem.status, "detail": problem.detail, "errors": errors, "more": problem.more}
    return {"problem": {**said, "retry_after_s": problem.retry_after_s}}


def _in_short(row: BundleRow, live: dict[str, str]) -> Outcome:
    return {
        "bundle": row.id,
        "created": rfc3339(row.created),
        "live": sorted(surface for surface, bundle in live.items() if bundle == row.id),
        "surfaces": row.manifest.get("surfaces", []),
        "families": [entry["family"] for entry in row.manifest.get("families", [])],
        "metrics": row.manifest.get("metrics", {}),
    }
