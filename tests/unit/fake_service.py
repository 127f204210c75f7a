"""A `Service` without anything behind it: what it was asked is kept, what it answers is plain."""

from collections.abc import Sequence
from typing import Any

from app.api.problems import Problem
from app.api.schemas import PromoteBody, RecommendBody, SimilarBody
from app.api.service import Json, Step
from app.errors import BrokerUnavailable, Conflict, GateRefused, NotFound, RequestInvalid
from app.settings import Settings


class FakeService:
    """Knows items "1" to "9", the bundle "b1", the surfaces of its settings."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.asked: list[Any] = []
        self.ready = True
        self.broker = True

    async def recommend(self, body: RecommendBody) -> Json:
        self.asked.append(body)
        if body.surface not in (None, *self.settings.surfaces):
            raise NotFound(f"no surface {body.surface!r}")
        if body.user_id == "invalid":
            raise RequestInvalid("filters.x", "x", "a column")
        if body.user_id == "crash":
            raise RuntimeError("secret detail")
        items = [{"item_id": str(place + 1), "score": 1.0 / (place + 1)} for place in range(body.k or 10)]
        return {
            "request_id": "r", "surface": body.surface or "home", "variant": "champion", "bundle": "b1",
            "degraded": None, "degraded_reason": None, "items": items, "timings_ms": {"total": 0.1},
        }  # fmt: skip

    async def recommend_many(self, bodies: Sequence[RecommendBody]) -> list[Json | Problem]:
        replies: list[Json | Problem] = []
        for body in bodies:
            try:
                replies.append(await self.recommend(body))
            except NotFound as error:
                replies.append(Problem(404, str(error)))
        return replies

    async def similar(self, body: SimilarBody) -> Json:
        return await self.recommend(RecommendBody(items=[body.item_id], k=body.k, surface=body.surface))

    async def post_events(self, events: Sequence[Any], wait: bool) -> Json:
        if not self.broker:
            raise BrokerUnavailable("the broker does not answer")
        rejected = [
            {"index": index, "code": "event_type", "message": "event_type: a required field"}
            for index, event in enumerate(events)
            if not isinstance(event, dict) or "event_type" not in event
        ]
        return {"accepted": len(events) - len(rejected), "applied": True if wait else None, "rejected": rejected}

    async def put_item(self, item_id: str, columns: dict[str, Any]) -> tuple[bool, Json]:
        return item_id not in "123456789", {"item_id": item_id, "available": True, **columns}

    async def post_items(self, items: Sequence[Any]) -> Json:
        rejected = [
            {"index": index, "code": "item_id", "message": "item_id: a required field"}
            for index, item in enumerate(items)
            if not isinstance(item, dict) or "item_id" not in item
        ]
        return {"accepted": len(items) - len(rejected), "rejected": rejected}

    async def get_item(self, item_id: str) -> Json:
        if item_id not in "123456789":
            raise NotFound(f"no item {item_id!r}")
        return {"item_id": item_id, "available": True}

    async def delete_item(self, item_id: str) -> None:
        await self.get_item(item_id)

    async def put_user(self, user_id: str, columns: dict[str, Any]) -> Json:
        return {"user_id": user_id, **columns}

    async def get_user(self, user_id: str) -> Json:
        raise NotFound(f"no user {user_id!r}")

    async def history(self, user_id: str) -> Json:
        return {"user_id": user_id, "items": [], "version": 0}

    async def merge(self, user_id: str, session_id: str) -> Json:
        if session_id == "taken":
            raise Conflict("session 'taken': found merged with another user, wanted unmerged")
        return {"user_id": user_id, "session_id": session_id}

    async def erase(self, user_id: str) -> Json:
        """Always the same."""
        del user_id
        return await self.erasure("e-1")

    async def erasure(self, erasure_id: str) -> Json:
        """One that is done."""
        if erasure_id != "e-1":
            raise NotFound(f"no erasure {erasure_id!r}")
        places = [{"place": "state", "cleared": "2026-11-21T10:15:00Z"}]
        times = {"requested": "2026-11-21T10:14:00.000Z", "changed": "2026-11-21T10:15:00.000Z"}
        return {"erasure": "e-1", "state": "done", "reason": None, **times, "places": places}

    async def surfaces(self) -> list[Json]:
        return [{"surface": name, "bundle": "b1", "variants": ["champion"]} for name in self.settings.surfaces]

    async def bundles(self) -> list[Json]:
        return [{"bundle": f"b{place}"} for place in (3, 2, 1)]

    async def bundle(self, bundle_id: str) -> Json:
        if bundle_id != "b1":
            raise NotFound(f"no bundle {bundle_id!r}")
        return {"bundle": bundle_id}

    async def promote(self, bundle_id: str, body: PromoteBody) -> Json:
        await self.bundle(bundle_id)
        if not body.force:
            raise GateRefused("worse than the champion", {"champion": 0.2, "challenger": 0.1})
        return {"promotion": "p1", "state": "loading"}

    async def promotion(self, promotion_id: str) -> Json:
        if promotion_id != "p1":
            raise NotFound(f"no promotion {promotion_id!r}")
        return {"promotion": "p1", "state": "live", "reason": None, "replicas": {"loaded": 2, "total": 2}}

    async def rollback(self, surface: str) -> Json:
        if surface not in self.settings.surfaces:
            raise NotFound(f"no surface {surface!r}")
        return {"promotion": "p1", "state": "loading"}

    async def ctr(self, surface: str | None, first: int | None, end: int | None, step: Step, by_source: bool) -> Json:
        self.asked.append((surface, first, end, step, by_source))
        await self.trending(surface, 1)
        figures = {"impressions": 4, "clicks": 1, "conversions": 0, "ctr": 0.25, "final": True}
        who = {"surface": surface or "home", "variant": "champion", "bundle": "b1"}
        source = {"source": "ease"} if by_source else {}
        span = {"start": "2026-11-21T10:00:00Z", "end": "2026-11-21T11:00:00Z"}
        times = {"watermark": "2026-11-21T10:41:07Z", "kept_from": "2026-11-14T10:00:00Z"}
        return {"buckets": [{**span, **who, **source, **figures}], **times}

    async def trending(self, surface: str | None, k: int) -> Json:
        if surface not in (None, *self.settings.surfaces):
            raise NotFound(f"surface {surface!r}: wanted one of {', '.join(self.settings.surfaces)}")
        window = {"start": "2026-11-20T11:00:00Z", "end": "2026-11-21T11:00:00Z"}
        items = [{"item_id": "1", "score": 2.0, "count": 2}][:k]
        return {"items": items, "window": window, "watermark": "2026-11-21T10:41:07Z"}

    async def readiness(self) -> tuple[bool, Json]:
        return self.ready, {"state": {"ready": self.ready}}

    async def metrics(self) -> bytes:
        return b"# HELP manta_requests_total Requests.\n"
