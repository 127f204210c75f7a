"""Routes: surfaces, bundles, promotions and rollback."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query

from app.api.routing import Json, StrictRoute, problems
from app.api.schemas import (
    BundlesAnswer,
    Name,
    PromoteBody,
    PromotionAnswer,
    PromotionStarted,
    RollbackBody,
    SurfacesAnswer,
)
from app.api.service import Service

Limit = Annotated[int, Query(ge=1, le=1000, description="Entries on a page.")]
After = Annotated[str | None, Query(description="The last name of the page before.")]


def bundles_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["bundles"])
    raw: dict[str, Any] = {"response_model": None, "response_class": Json}

    @router.get("/v1/surfaces", summary="Surfaces", responses={200: {"model": SurfacesAnswer}, **problems(422)}, **raw)
    async def surfaces(limit: Limit = 1000, after: After = None) -> Json:
        return Json({"surfaces": page(await service.surfaces(), "surface", limit, after)})

    @router.get("/v1/bundles", summary="Bundles", responses={200: {"model": BundlesAnswer}, **problems(422)}, **raw)
    async def bundles(limit: Limit = 100, after: After = None) -> Json:
        return Json({"bundles": page(await service.bundles(), "bundle", limit, after)})

    @router.get("/v1/bundles/{bundle_id}", summary="A bundle's lineage and metrics", responses=problems(404), **raw)
    async def bundle(bundle_id: Name) -> Json:
        return Json(await service.bundle(bundle_id))

    @router.post(
        "/v1/bundles/{bundle_id}/promote",
        summary="Make a bundle live",
        status_code=202,
        responses={202: {"model": PromotionStarted}, **problems(400, 404, 409, 413, 415, 422, 503)},
        **raw,
    )
    async def promote(
        bundle_id: Name,
        body: Annotated[
            PromoteBody | None,
            Body(openapi_examples={"everywhere": {"value": {}}, "forced": {"value": {"force": True}}}),
        ] = None,
    ) -> Json:
        return Json(await service.promote(bundle_id, body or PromoteBody()), 202)

    @router.get(
        "/v1/promotions/{promotion_id}",
        summary="How far a promotion is",
        responses={200: {"model": PromotionAnswer}, **problems(404)},
        **raw,
    )
    async def promotion(promotion_id: Name) -> Json:
        return Json(await service.promotion(promotion_id))

    @router.post(
        "/v1/surfaces/{surface}/rollback",
        summary="Back to the bundle that was live before",
        status_code=202,
        responses={202: {"model": PromotionStarted}, **problems(400, 404, 409, 413, 415, 422, 503)},
        **raw,
    )
    async def rollback(
        surface: Annotated[Name, Path(examples=["home"])], body: Annotated[RollbackBody | None, Body()] = None
    ) -> Json:
        del body  # it has no keys: others are refused
        return Json(await service.rollback(surface), 202)

    return router


def page(rows: Sequence[Any], key: str, limit: int, after: str | None) -> list[Any]:
    """`limit` rows behind the one whose `key` is `after`; an unknown `after` is the beginning."""
    start = next((place + 1 for place, row in enumerate(rows) if row[key] == after), 0)
    return list(rows[start : start + limit])
