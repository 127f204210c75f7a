"""Routes: recommend (POST, GET, batch) and similar (POST, GET)."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query
from pydantic import ValidationError

from app.api.problems import Problem, encode, invalid
from app.api.routing import Json, StrictRoute, problems
from app.api.schemas import BatchAnswer, BatchBody, Id, Name, RecommendAnswer, RecommendBody, SimilarBody
from app.api.service import Service

RECOMMEND = "/v1/recommend"
_ERRORS = problems(400, 404, 413, 415, 422, 503)
_EXAMPLES = {
    "a user": {"value": {"surface": "home", "user_id": "42", "k": 10}},
    "a visitor": {"value": {"history": ["318", "296"], "filters": {"genres": {"any": ["Drama"]}}, "explain": True}},
}


def recommend_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["recommend"])
    model: dict[str, Any] = {"response_model": None, "response_class": Json}
    answer: dict[int | str, dict[str, Any]] = {200: {"model": RecommendAnswer}, **_ERRORS}

    @router.post(RECOMMEND, summary="Recommend", responses=answer, **model)
    async def recommend(body: Annotated[RecommendBody, Body(openapi_examples=_EXAMPLES)]) -> Json:
        return Json(await service.recommend(body))

    @router.post(
        f"{RECOMMEND}/batch",
        summary="Recommend for many",
        responses={200: {"model": BatchAnswer}, **_ERRORS},
        **model,
    )
    async def batch(
        body: Annotated[BatchBody, Body(openapi_examples={"two": {"value": {"requests": [{"user_id": "42"}, {}]}}})],
    ) -> Json:
        return Json(b'{"responses":[' + b",".join(await _answers(service, body.requests)) + b"]}")

    @router.get(RECOMMEND + "/{user_id:path}", summary="Recommend by hand", responses=answer, **model)
    async def by_hand(
        user_id: Annotated[Id, Path(examples=["42"])],
        surface: Annotated[Name | None, Query(examples=["home"])] = None,
        k: Annotated[int | None, Query(ge=1, le=500)] = None,
        explain: bool | None = None,
        timeout_ms: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    ) -> Json:
        body = RecommendBody(user_id=user_id, surface=surface, k=k, explain=explain, timeout_ms=timeout_ms)
        return Json(await service.recommend(body))

    @router.post("/v1/similar", summary="Items like one item", responses=answer, **model)
    async def similar(
        body: Annotated[SimilarBody, Body(openapi_examples={"an item": {"value": {"item_id": "318", "k": 10}}})],
    ) -> Json:
        return Json(await service.similar(body))

    @router.get("/v1/similar/{item_id:path}", summary="Items like one item, by hand", responses=answer, **model)
    async def similar_by_hand(
        item_id: Annotated[Id, Path(examples=["318"])],
        surface: Name | None = None,
        k: Annotated[int | None, Query(ge=1, le=500)] = None,
        explain: bool | None = None,
    ) -> Json:
        return Json(await service.similar(SimilarBody(item_id=item_id, surface=surface, k=k, explain=explain)))

    return router


async def _answers(service: Service, raws: list[Any]) -> list[bytes]:
    """One encoded answer or `{"problem": …}` a request; a wrong one harms only itself."""
    replies: list[Any] = [None] * len(raws)
    places, bodies = [], []
    for place, raw in enumerate(raws):
        try:
            bodies.append(RecommendBody.model_validate(raw))
            places.append(place)
        except ValidationError as error:
            replies[place] = invalid(error.errors(include_url=False))
    if bodies:
        for place, reply in zip(places, await service.recommend_many(bodies), strict=True):
            replies[place] = reply
    return [encode({"problem": reply.as_json()} if isinstance(reply, Problem) else reply) for reply in replies]
