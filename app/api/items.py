"""Routes: items."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Response

from app.api.events import entries, refuse_all_wrong
from app.api.problems import wrong
from app.api.routing import Json, StrictRoute, problems
from app.api.schemas import Id, ItemAnswer, ItemsAnswer
from app.api.service import Service

_COLUMNS = {"title": "The Third Man (1949)", "genres": ["Film-Noir", "Mystery"], "year": 1949}
ItemId = Annotated[Id, Path(examples=["318"])]


def items_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["items"])
    raw: dict[str, Any] = {"response_model": None, "response_class": Json}

    @router.put(
        "/v1/items/{item_id:path}",
        summary="Put an item",
        responses={
            200: {"model": ItemAnswer, "description": "Changed, or available again"},
            201: {"model": ItemAnswer, "description": "New"},
            **problems(400, 413, 415, 422, 503),
        },
        **raw,
    )
    async def put(
        item_id: ItemId, body: Annotated[dict[str, Any], Body(openapi_examples={"a film": {"value": _COLUMNS}})]
    ) -> Json:
        if body.get("item_id", item_id) != item_id:
            raise wrong("item_id", body["item_id"], f"{item_id!r}, as in the path, or absent")
        new, item = await service.put_item(item_id, {key: value for key, value in body.items() if key != "item_id"})
        return Json(item, 201 if new else 200)

    @router.post(
        "/v1/items",
        summary="Put many items",
        status_code=202,
        responses={202: {"model": ItemsAnswer}, **problems(400, 413, 415, 422, 503)},
        **raw,
    )
    async def post(
        body: Annotated[
            dict[str, Any] | list[Any], Body(openapi_examples={"a list": {"value": [{"item_id": "318", **_COLUMNS}]}})
        ],
    ) -> Json:
        items = entries(body, "items", single=False)
        answer = await service.post_items(items)
        refuse_all_wrong(items, answer["rejected"])
        return Json(answer, 202)

    @router.get(
        "/v1/items/{item_id:path}",
        summary="An item's columns",
        responses={200: {"model": ItemAnswer}, **problems(404, 422, 503)},
        **raw,
    )
    async def get(item_id: ItemId) -> Json:
        return Json(await service.get_item(item_id))

    @router.delete(
        "/v1/items/{item_id:path}",
        summary="Withdraw an item",
        status_code=204,
        response_model=None,
        responses=problems(404, 422, 503),
    )
    async def delete(item_id: ItemId) -> Response:
        await service.delete_item(item_id)
        return Response(status_code=204)

    return router
