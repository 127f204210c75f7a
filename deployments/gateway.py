"""A replica of the endpoint: the HTTP service over its bundles, its view of the state, Kafka and the coordinator."""

import asyncio
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from app.api.application import create_edge
from app.api.problems import Problem, problem_of, shown_problem
from app.api.schemas import PromoteBody, RecommendBody, SimilarBody, plain_filters
from app.api.service import Json, Step
from app.chain.request import Answer, Request, similar
from app.errors import NotFound, StateUnavailable
from app.events.producer import EventProducer
from app.own_folders import hold
from app.settings import Settings
from app.state.replica import StateReplica
from app.state.sharded import ShardedState
from deployments import ingress
from deployments.access_log import AccessLog
from deployments.answering import Answering, Held
from deployments.bundles import BundleStore
from deployments.column_kinds import kinds_of
from deployments.coordinator import Coordinator
from deployments.figures import Figures
from deployments.freshness import Follower
from deployments.health import Tally
from deployments.impressions import Impressions
from deployments.loopback import keep_to_node
from deployments.metric_files import exposition, keep_in_files
from deployments.metrics import GatewayMetrics
from deployments.nodes import OtherNodes
from deployments.owners import ShardOwners
from deployments.positions import Positions, ShardPositions
from deployments.retention import RetentionFile
from deployments.stages import RemoteStages
from deployments.state_writer import ensure_state_writers
from deployments.threads import cap_threads
from deployments.writes import Writes

logger = logging.getLogger(__name__)

FIGURES_S = 1.0
# A replica whose catch-up has failed for this long is not just late: Serve replaces it.
BROKEN_S = 3.0
# How long a replica that closes hands over impressions before it leaves the rest.
CLOSE_S = 1.0


class Gateway:
    """Implements `app.api.service.Service`; built by `deployments.build`."""

    settings: Settings

    async def __init__(  # type: ignore[misc]
        self,
        settings: Settings,
        home: str,
        retriever: DeploymentHandle | None = None,
        ranker: DeploymentHandle | None = None,
    ) -> None:
        """Ready once the live bundles are loaded; without any it serves what needs none.

        Args:
            settings: `kafka.bootstrap_servers` names the broker.
            home: MANTA_HOME of this node.
            retriever, ranker: the stages of distributed surfaces, where there are any.
        """
        keep_to_node()
        cap_threads(settings.serve.gateway.num_cpus)
        self.settings = settings
        self._home = Path(home)
        self._coordinator = Coordinator(settings, self._home)
        self._store: BundleStore[Held] = BundleStore(
            "gateway", self._load, flip=self._flip, holds=self._holds, drop=Held.close, tallies=self._tallies
        )
        name = self._store.member
        self._metrics_folder = self._home / "metrics"
        keep_in_files(self._metrics_folder, name)
        self._metrics = GatewayMetrics(name)
        self._retention = RetentionFile(self._home)
        self._owners = ShardOwners() if settings.state.placement == "sharded" else None
        self._state: StateReplica | ShardedState = (
            StateReplica.of_home(self._home, name)
            if self._owners is None
            else ShardedState(self._home, name, settings.state, self._owners)
        )
        self._follower = Follower(self._state, timeout_s=settings.state.catch_up_timeout_s, moved=self._moved)
        self._producer = EventProducer(settings.kafka, max_optional=settings.serve.impressions_buffer)
        self._live_figures = Figures(settings, self._home, name, self._state)
        self._cache_folder = self._home / "cache" / name
        self._cache_mark = hold(self._cache_folder)
        self._answering = Answering(
            settings,
            self._state,
            self._follower,
            folder=self._cache_folder,
            remote=RemoteStages(retriever, ranker) if retriever is not None and ranker is not None else None,
            impressions=Impressions(
                self._producer, settings.serve.impressions_buffer, settings.serve.impressions_share
            ),
            metrics=self._metrics,
        )
        self._kinds: dict[str, str] = {}
        self._writes = Writes(
            settings,
            self._state,
            self._follower,
            self._producer,
            ShardPositions(self._state, OtherNodes().applied)
            if isinstance(self._state, ShardedState)
            else Positions(self._state, OtherNodes().applied),
            self._metrics,
            self._bundled,
            lambda: self._kinds,
        )
        self._edge = create_edge(self)
        self._tasks = [
            asyncio.create_task(self._store.follow(self._coordinator.exchange)),
            asyncio.create_task(self._keep_up()),
        ]
        await self._begin()
        ingress.serve_from(self._edge)

    async def _begin(self) -> None:
        if self.settings.log.requests:
            self._answering.access_log = log = await asyncio.to_thread(self._access_log)
            self._edge.log = log.request
        await asyncio.to_thread(ensure_state_writers, self.settings, self._home)
        if self._owners is not None and isinstance(self._state, ShardedState):
            shards = self.settings.state.shards
            await self._owners.refresh(self._state, shards)
            self._tasks.append(asyncio.create_task(self._owners.follow(self._state, shards)))
        try:
            await self._fresh()
        except StateUnavailable as error:
            logger.warning("starting before the state is there: %s", error)
        await self._store.ready()

    def _access_log(self) -> AccessLog:
        from app.erasure.ledger import ErasureLedger  # only who logs needs the database

        ledger = ErasureLedger(self.settings, self._home)
        try:
            return AccessLog(ledger.salt)
        finally:
            ledger.close()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve asks for the application once the replica stands."""
        return self._edge

    # Serve

    async def check_health(self) -> None:
        """Serve replaces a replica that cannot follow the state although the writer goes on."""
        broken = self._follower.broken_for()
        if broken > BROKEN_S and self._state.writer_seen_ms():
            raise StateUnavailable(f"the replica could not follow the state for {broken:.1f} s")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Requests in flight that Serve does not count: those answered before its own routing."""
        return {ingress.IN_FLIGHT: float(ingress.in_flight())}

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._answering.impressions.close(CLOSE_S)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._producer.close()
        dropped = self._dropped() + self._producer.optional_in_flight  # the broker has not said that it has these
        self._metrics.dropped(dropped)
        if dropped:
            logger.warning("%d impressions of this replica were dropped", dropped)
        self._live_figures.close()
        self._state.close()
        shutil.rmtree(self._cache_folder, ignore_errors=True)
        self._cache_mark.close()

    # The bundles

    def _load(self, bundle_id: str, folder: Path) -> Held:
        return self._answering.load(bundle_id, folder)

    def _flip(self, live: Mapping[str, str]) -> None:
        self._answering.flip(live, self._store.loaded)
        self._kinds = self._kinds_of_catalogue()

    def _holds(self) -> set[str]:
        return self._answering.holds()

    def _tallies(self, bundles: Iterable[str]) -> Mapping[str, Tally]:
        return self._answering.health.tallies(bundles)

    def _moved(self) -> None:
        self._answering.follow_items()

    def _bundled(self, item_id: str) -> Mapping[str, Any] | None:
        for lane in self._answering.lanes.values():
            live = lane.chain.target.live
            row = live.row_of.get(item_id)
            if row is not None:
                return live.columns_of(row)
        return None

    def _kinds_of_catalogue(self) -> dict[str, str]:
        """Column name to kind, from the first live bundle that has a value there."""
        bundles = [lane.chain.target.bundle for lane in self._answering.lanes.values()]
        kinds: dict[str, str] = {}
        for bundle in {bundle.id: bundle for bundle in bundles}.values():
            kinds = kinds_of(bundle.catalogue.columns) | kinds
        return kinds

    # Recommendations

    async def recommend(self, body: RecommendBody) -> Json:
        """As `Service.recommend`."""
        return (await self._answer(body.surface, self._answering.request(body))).body()

    async def _answer(self, surface: str | None, request: Request) -> Answer:
        try:
            return await self._answering.lane(surface).batcher.ask(request)
        except Exception as error:
            problem = problem_of(error)
            name = surface or self.settings.default_surface
            known = name if name in self.settings.surfaces else "(unknown)"
            self._metrics.problem(known, problem.status if problem else 500)
            raise

    async def recommend_many(self, bodies: Sequence[RecommendBody]) -> list[Json | Problem]:
        """As `Service.recommend_many`: micro-batches like any others, so that the answers are the same."""
        outcomes = await asyncio.gather(*(self.recommend(body) for body in bodies), return_exceptions=True)
        return [self._one_of_many(outcome) for outcome in outcomes]

    def _one_of_many(self, outcome: Json | BaseException) -> Json | Problem:
        if not isinstance(outcome, BaseException):
            return outcome
        if not isinstance(outcome, Exception):
            raise outcome
        return shown_problem(outcome)

    async def similar(self, body: SimilarBody) -> Json:
        """As `Service.similar`."""
        draft = self._answering.request(RecommendBody())
        request = similar(
            body.item_id,
            k=body.k,
            filters=plain_filters(body.filters) if body.filters else None,
            exclude=body.exclude or (),
            explain=bool(body.explain),
            arrived=draft.arrived,
            request_id=draft.request_id,
        )
        return (await self._answer(body.surface, request)).body()

    # Writing

    async def post_events(self, events: Sequence[Any], wait: bool) -> Json:
        """As `Service.post_events`."""
        return await self._writes.post_events(events, wait)

    async def put_item(self, item_id: str, columns: dict[str, Any]) -> tuple[bool, Json]:
        """As `Service.put_item`."""
        return await self._writes.put_item(item_id, columns)

    async def post_items(self, items: Sequence[Any]) -> Json:
        """As `Service.post_items`."""
        return await self._writes.post_items(items)

    async def get_item(self, item_id: str) -> Json:
        """As `Service.get_item`."""
        return await self._writes.get_item(item_id)

    async def delete_item(self, item_id: str) -> None:
        """As `Service.delete_item`."""
        await self._writes.delete_item(item_id)

    async def put_user(self, user_id: str, columns: dict[str, Any]) -> Json:
        """As `Service.put_user`."""
        return await self._writes.put_user(user_id, columns)

    async def get_user(self, user_id: str) -> Json:
        """As `Service.get_user`."""
        return await self._writes.get_user(user_id)

    async def history(self, user_id: str) -> Json:
        """As `Service.history`."""
        return await self._writes.history(user_id)

    async def merge(self, user_id: str, session_id: str) -> Json:
        """As `Service.merge`."""
        return await self._writes.merge(user_id, session_id)

    async def erase(self, user_id: str) -> Json:
        """As `Service.erase`."""
        begun: Json = await self._coordinator.ask("erase", user_id)
        return begun

    async def erasure(self, erasure_id: str) -> Json:
        """As `Service.erasure`."""
        found: Json = await self._coordinator.ask("erasure", erasure_id)
        return found

    # Bundles over HTTP

    async def surfaces(self) -> list[Json]:
        """As `Service.surfaces`."""
        return [
            {
                "surface": name,
                "bundle": self._store.live.get(name),
                "variants": ["champion"],
                **section.model_dump(mode="json"),
            }
            for name, section in self.settings.surfaces.items()
        ]

    async def bundles(self) -> list[Json]:
        """As `Service.bundles`."""
        found: list[Json] = await self._coordinator.ask("bundles")
        return found

    async def bundle(self, bundle_id: str) -> Json:
        """As `Service.bundle`."""
        found: Json = await self._coordinator.ask("bundle", bundle_id)
        return found

    async def promote(self, bundle_id: str, body: PromoteBody) -> Json:
        """As `Service.promote`."""
        started: Json = await self._coordinator.ask("promote", bundle_id, body.surfaces, body.force, body.expected)
        return started

    async def promotion(self, promotion_id: str) -> Json:
        """As `Service.promotion`."""
        found: Json = await self._coordinator.ask("promotion", promotion_id)
        return found

    async def rollback(self, surface: str) -> Json:
        """As `Service.rollback`."""
        if surface not in self.settings.surfaces:
            raise NotFound(f"surface {surface!r}: wanted one of {', '.join(self.settings.surfaces)}")
        started: Json = await self._coordinator.ask("rollback", surface)
        return started

    # Live figures

    async def ctr(self, surface: str | None, first: int | None, end: int | None, step: Step, by_source: bool) -> Json:
        """As `Service.ctr`."""
        return await self._live_figures.ctr(surface, first, end, step, by_source)

    async def trending(self, surface: str | None, k: int) -> Json:
        """As `Service.trending`."""
        return await self._live_figures.trending(surface, k)

    # Health

    async def readiness(self) -> tuple[bool, Json]:
        """As `Service.readiness`."""
        try:
            await self._fresh()
            state: dict[str, Any] = {"ready": True}
        except StateUnavailable as error:
            state = {"ready": False, "reason": str(error)}
        if self._owners is not None:
            if not self._owners.heard:
                state = {"ready": False, "reason": "not every shard has been read yet"}
            if self._owners.errors:
                state["shards"] = {str(shard): why for shard, why in sorted(self._owners.errors.items())}
        if (stopped := self._state.stopped() or self._state.shortage()) is not None:
            state["writer"] = str(stopped)
        missing = [name for name in self.settings.surfaces if name not in self._answering.lanes]
        bundles = {"ready": not missing, "live": dict(self._store.live), "missing": missing}
        stages = {"state": state, "bundles": bundles}
        return all(stage["ready"] for stage in stages.values()), stages

    async def metrics(self) -> bytes:
        """As `Service.metrics`."""
        self._figures()
        return await asyncio.to_thread(exposition, self._metrics_folder)

    async def _fresh(self) -> None:
        if self._follower.behind():
            await self._follower.refresh()

    async def _keep_up(self) -> None:
        """Also a replica that nobody asks follows the state: its first answer must not pay for what it has missed."""
        while True:
            try:
                await self._fresh()
            except StateUnavailable as error:
                logger.debug("not caught up: %s", error)
            self._figures()
            await asyncio.sleep(FIGURES_S)

    def _figures(self) -> None:
        seen_ms = self._state.writer_seen_ms()
        free, used = self._state.disk()
        figures = {
            "in_flight": self._edge.in_flight,
            "shed": self._edge.shed,
            "impressions_dropped": self._dropped(),
            "state_writer_silent_seconds": max(0.0, time.time() - seen_ms / 1000) if seen_ms else 0.0,
            "state_lag_messages": self._state.lag(),
            "state_jumped_messages": self._state.jumped(),
            "state_writer_stopped": int(self._state.shortage() is not None),
            "state_bytes": used,
            "disk_free_bytes": free,
            "catch_ups": self._follower.catch_ups,
        }
        for name, value in figures.items():
            self._metrics.figure(name, value)
        self._metrics.dropped(self._dropped())
        if (measured := self._retention.changed()) is not None:
            self._metrics.retention(measured["readers"])

    def _dropped(self) -> int:
        """Impressions so far: never handed to the producer, or not taken or not delivered by it."""
        return self._answering.impressions.dropped + self._producer.dropped
