"""Routes: users, their history, the merge of a session, and erasure."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query

from app.api.problems import wrong
from app.api.routing import Json, StrictRoute, problems
from app.api.schemas import (
    ErasureAnswer,
    ErasureStarted,
    HistoryAnswer,
    Id,
    MergeAnswer,
    MergeBody,
    Name,
    UserAnswer,
)
from app.api.service import Service

UserId = Annotated[Id, Path(examples=["42"])]


def users_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["users"])
    raw: dict[str, Any] = {"response_model": None, "response_class": Json}

    @router.get(
        "/v1/users/{user_id:path}/history",
        summary="A user's stored history",
        responses={200: {"model": HistoryAnswer}, **problems(422, 503)},
        **raw,
    )
    async def history(
        user_id: UserId,
        limit: Annotated[int | None, Query(ge=1, le=10_000, description="Entries on a page; absent: all.")] = None,
        after: Annotated[int, Query(ge=0, description="Entries of the pages before, counted from the oldest.")] = 0,
    ) -> Json:
        whole = await service.history(user_id)
        if limit is None and not after:
            return Json(whole)
        count = len(whole["items"])
        end = count if limit is None else min(after + limit, count)
        return Json({**whole, "items": whole["items"][after:end], "next": end if end < count else None})

    @router.post(
        "/v1/users/{user_id:path}/merge",
        summary="A visitor has logged in",
        status_code=202,
        responses={202: {"model": MergeAnswer}, **problems(400, 409, 413, 415, 422, 503)},
        **raw,
    )
    async def merge(
        user_id: UserId,
        body: Annotated[MergeBody, Body(openapi_examples={"a session": {"value": {"session_id": "s-1"}}})],
    ) -> Json:
        return Json(await service.merge(user_id, body.session_id), 202)

    @router.put(
        "/v1/users/{user_id:path}",
        summary="Put a user's columns",
        responses={200: {"model": UserAnswer}, **problems(400, 413, 415, 422, 503)},
        **raw,
    )
    async def put(
        user_id: UserId,
        body: Annotated[dict[str, Any], Body(openapi_examples={"columns": {"value": {"country": "AT", "age": 41}}})],
    ) -> Json:
        if body.get("user_id", user_id) != user_id:
            raise wrong("user_id", body["user_id"], f"{user_id!r}, as in the path, or absent")
        return Json(await service.put_user(user_id, {key: value for key, value in body.items() if key != "user_id"}))

    @router.get(
        "/v1/users/{user_id:path}",
        summary="A user's columns",
        responses={200: {"model": UserAnswer}, **problems(404, 422, 503)},
        **raw,
    )
    async def get(user_id: UserId) -> Json:
        return Json(await service.get_user(user_id))

    @router.delete(
        "/v1/users/{user_id:path}",
        summary="Erase a user everywhere",
        status_code=202,
        responses={202: {"model": ErasureStarted}, **problems(422, 503)},
        **raw,
    )
    async def erase(user_id: UserId) -> Json:
        return Json({"erasure": (await service.erase(user_id))["erasure"]}, 202)

    @router.get(
        "/v1/erasures/{erasure_id}",
        summary="How far an erasure is",
        responses={200: {"model": ErasureAnswer}, **problems(404, 422, 503)},
        **raw,
    )
    async def erasure(erasure_id: Annotated[Name, Path(examples=["e-20261121-101500-1a2b3c4d"])]) -> Json:
        return Json(await service.erasure(erasure_id))

    return router
