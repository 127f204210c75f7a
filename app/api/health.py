"""Routes: healthz, readyz, metrics."""

from typing import Any

from fastapi import APIRouter, Response

from app.api.problems import Problem
from app.api.routing import Json, StrictRoute, problems
from app.api.service import Service


def health_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["health"])

    @router.get("/healthz", summary="Alive", response_class=Json, response_model=None)
    async def healthz() -> Json:
        return Json({"status": "alive"})

    @router.get(
        "/readyz",
        summary="A bundle is live for every surface, and the state has caught up",
        response_class=Json,
        response_model=None,
        responses=problems(503),
    )
    async def readyz() -> Json:
        ready, stages = await service.readiness()
        if not ready:
            late = ", ".join(name for name, stage in stages.items() if not stage["ready"])
            raise Problem(503, f"not ready: {late}", retry_after_s=1, more={"ready": False, "stages": stages})
        return Json({"ready": True, "stages": stages})

    @router.get(
        "/metrics",
        summary="Prometheus text over all replicas",
        response_model=None,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        media: Any = "text/plain; version=0.0.4; charset=utf-8"
        return Response(await service.metrics(), media_type=media)

    return router
