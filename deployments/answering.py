"""How a gateway replica answers: per surface one lane, made of a chain over a loaded bundle and its micro-batches."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.api.problems import Problem
from app.api.schemas import RecommendBody, plain_filters
from app.cache import AnswerCache, ListStore
from app.chain.outcomes import Outcome
from app.chain.question import history_key
from app.chain.sample import Sample
from app.degrade import Breakers
from app.errors import MantaError, NotFound
from app.recommend import Answer, Chain, LiveBundle, LocalStages, Request, Stages, recommend, warm_up
from app.settings import Settings
from app.state.reader import StateReader
from app.state.sharded import Key, ShardedState
from deployments.access_log import AccessLog
from deployments.batching import Batcher, Deliver
from deployments.freshness import Follower
from deployments.health import Health
from deployments.impressions import Impressions
from deployments.metrics import GatewayMetrics

if TYPE_CHECKING:
    from app.bundles.load import LoadedBundle

logger = logging.getLogger(__name__)


class Held:
    """A bundle as a replica holds it: with its live items, its lists and the stages in this process."""

    def __init__(self, bundle: "LoadedBundle", live: LiveBundle) -> None:
        self.bundle, self.live = bundle, live
        self.local = LocalStages({bundle.id: bundle})

    def close(self) -> None:
        """Gives up what is on the disk."""
        if isinstance(self.live.lists, ListStore):
            self.live.lists.close()


class Lane:
    """One surface over one bundle. Requests that came in before a flip are answered by the lane they came in on."""

    def __init__(self, chain: Chain, batcher: Batcher[Request, Answer]) -> None:
        self.chain, self.batcher = chain, batcher

    @property
    def busy(self) -> bool:
        return self.batcher.busy


class Answering:
    """The lanes of a replica. Belongs to one event loop.

    Attributes:
        lanes: by surface.
        impressions: where the answers are logged.
        health: how each bundle does, for whoever watches a promotion.
        access_log: gets a line for each answer; None: nobody wants to know.
    """

    def __init__(
        self,
        settings: Settings,
        state: StateReader,
        follower: Follower,
        *,
        folder: Path,
        remote: Stages | None,
        impressions: Impressions,
        metrics: GatewayMetrics,
    ) -> None:
        """`folder`: this replica's own, for lists and answers. `remote`: the stages of distributed surfaces."""
        self._settings, self._state, self._follower = settings, state, follower
        self._folder, self._remote = folder, remote
        self.impressions, self._metrics = impressions, metrics
        self._answers = AnswerCache(folder / "answers", settings.cache.max_bytes) if settings.cache.answers else None
        self._breakers = {"colocated": Breakers(), "distributed": Breakers()}
        self._leaving: list[Lane] = []
        self.access_log: AccessLog | None = None
        self.health = Health()
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count()
        self.lanes: dict[str, Lane] = {}

    # Bundles

    def load(self, bundle_id: str, folder: Path) -> Held:
        """Loads a bundle, with the items as the state has them. Runs in a thread."""
        from app.bundles.load import load_bundle  # torch and all: only a replica takes it in, not who deploys it

        bundle = load_bundle(folder)
        lists = ListStore(self._folder / "lists" / bundle_id, bundle.lists) if bundle.lists else None
        live = LiveBundle(bundle, lists)
        warm_up(bundle, live)
        try:
            live.live.apply(self._state.item_changes(0))
        except MantaError as error:
            logger.info("bundle %s is loaded before the state is there: %s", bundle_id, error)
        return Held(bundle, live)

    def flip(self, live: Mapping[str, str], loaded: Mapping[str, Held]) -> None:
        """From now on each surface is answered from the bundle that `live` names."""
        for surface, bundle in live.items():
            present = self.lanes.get(surface)
            if present is None or present.chain.target.bundle.id != bundle:
                if present is not None:
                    self._leaving.append(present)
                self.lanes[surface] = self._lane(surface, loaded[bundle])
        for surface in [surface for surface in self.lanes if surface not in live]:
            self._leaving.append(self.lanes.pop(surface))
        try:
            self.follow_items()
        except MantaError as error:  # no request is answered before the first catch-up, which follows them
            logger.info("the items cannot be followed yet: %s", error)
        self._metrics.live(dict(live))

    def holds(self) -> set[str]:
        """Bundles that requests in flight still name, besides those that are live."""
        self._leaving = [lane for lane in self._leaving if lane.busy]
        return {lane.chain.target.bundle.id for lane in self._leaving}

    def follow_items(self) -> None:
        """Brings the live items of every bundle in use up to what the state shows."""
        targets = {id(lane.chain.target): lane.chain.target for lane in (*self.lanes.values(), *self._leaving)}
        for target in targets.values():
            target.live.apply(self._state.item_changes(target.live.sequence))

    def _lane(self, surface: str, held: Held) -> Lane:
        section, serve = self._settings.surfaces[surface], self._settings.serve
        distributed = section.topology == "distributed" and self._remote is not None
        chain = Chain(
            surface,
            section,
            held.live,
            self._state,
            self._remote if distributed and self._remote is not None else held.local,
            self._breakers[section.topology],
            self._answers,
            self._follower.refresh,
            seen_of=Sample(serve.features_share * serve.impressions_share),
        )

        async def work(requests: Sequence[Request], deliver: Deliver[Answer]) -> list[Outcome]:
            return await self._work(chain, requests, deliver)

        return Lane(chain, Batcher(work, max_batch=serve.max_batch, wait_s=serve.batch_wait_ms / 1000))

    # Requests

    async def _work(self, chain: Chain, requests: Sequence[Request], deliver: Deliver[Answer]) -> list[Outcome]:
        if self._follower.behind():
            await self._follower.refresh()
        outcomes = await self._recommended(chain, requests, deliver)
        try:
            self._after(chain, requests, outcomes)
        except Exception:  # the answers are given
            logger.exception("answers could not be counted")
        return outcomes

    async def _recommended(self, chain: Chain, requests: Sequence[Request], deliver: Deliver[Answer]) -> list[Outcome]:
        """Outcomes, in order. Who needs other nodes holds up nobody who does not, nor anybody with another deadline."""
        if not isinstance(self._state, ShardedState):
            return await recommend(chain, requests, deliver)
        keys = [history_key(request) if request.history is None else None for request in requests]
        near = self._state.at_hand([key for key in dict.fromkeys(keys) if key is not None])
        away = near.away
        if not away:
            return await recommend(replace(chain, state=near), requests, deliver)
        parts: dict[int, list[int]] = {}  # milliseconds that other nodes may take; 0: they are not asked
        for place, (request, key) in enumerate(zip(requests, keys, strict=True)):
            waits_ms = (request.timeout_ms or chain.surface.timeout_ms) // 2 if key in away else 0
            parts.setdefault(waits_ms, []).append(place)
        outcomes: dict[int, Outcome] = {}

        async def answer(waits_ms: int, places: Sequence[int]) -> None:
            asking, since = [requests[place] for place in places], chain.clock()
            state: StateReader = near
            if waits_ms:
                state = await self._asked({keys[place] for place in places}, asking, waits_ms / 1000)
            found = await recommend(
                replace(chain, state=state), asking, lambda n, outcome: deliver(places[n], outcome), since=since
            )
            outcomes.update(zip(places, found, strict=True))

        # Those who wait first: what they wait for is on its way while the others are answered
        await asyncio.gather(*(answer(waits_ms, places) for waits_ms, places in sorted(parts.items(), reverse=True)))
        return [outcomes[place] for place in range(len(requests))]

    async def _asked(self, keys: Collection[Key | None], requests: Sequence[Request], wait_s: float) -> StateReader:
        """The state with histories of other nodes, which have `wait_s` from the last request's arrival on."""
        assert isinstance(self._state, ShardedState)
        now = time.monotonic()
        until = max(request.arrived or now for request in requests) + wait_s
        return await self._state.gather([key for key in keys if key is not None], until - now)

    def _after(self, chain: Chain, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> None:
        """What comes after the answers: the bundle's health, impressions, metrics, the log."""
        self.health.count(chain.target.bundle.id, outcomes, local=chain.stages.immediate)
        now_us = time.time_ns() // 1000
        answers = []
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Answer):
                answers.append(outcome)
                self.impressions.log(request, outcome, now_us)
                if self.access_log is not None:
                    self.access_log.answered(request, outcome)
        self._metrics.answered(answers)
        self._metrics.batch(chain.surface_name, len(requests), answers[-1].timings_ms if answers else {})

    def lane(self, surface: str | None) -> Lane:
        """The lane of a surface, None: the default one.

        Raises:
            NotFound: no such surface.
            Problem: 503, no bundle is live there yet.
        """
        name = surface or self._settings.default_surface
        lane = self.lanes.get(name)
        if lane is None:
            if name not in self._settings.surfaces:
                raise NotFound(f"surface {name!r}: wanted one of {', '.join(self._settings.surfaces)}")
            raise Problem(503, f"no bundle is live on surface {name!r} yet", retry_after_s=1)
        return lane

    def request(self, body: RecommendBody) -> Request:
        """The body as the chain reads it."""
        return Request(
            user_id=body.user_id,
            session_id=body.session_id,
            k=body.k,
            exclude=body.exclude or (),
            filters=plain_filters(body.filters) if body.filters else None,
            items=body.items,
            candidates=body.candidates,
            history=body.history,
            context=body.context or {},
            explain=bool(body.explain),
            timeout_ms=body.timeout_ms,
            arrived=time.monotonic(),
            request_id=f"{self._prefix}{next(self._count):08x}",
        )
