"""Routes: the live figures."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.api.problems import wrong
from app.api.routing import Json, StrictRoute, problems
from app.api.schemas import CtrAnswer, Name, TrendingAnswer
from app.api.service import Service
from app.events.schema import parse_time

_EXAMPLE = "2026-11-21T00:00:00Z"


def stats_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["stats"])
    raw: dict[str, Any] = {"response_model": None, "response_class": Json}

    @router.get(
        "/v1/stats/ctr",
        summary="Impressions, clicks and conversions over event time",
        responses={200: {"model": CtrAnswer}, **problems(404, 422, 503)},
        **raw,
    )
    async def ctr(
        surface: Annotated[Name | None, Query(description="Absent: every surface.", examples=["home"])] = None,
        since: Annotated[
            str | None,
            Query(alias="from", description="RFC 3339; absent: a day, month or quarter before.", examples=[_EXAMPLE]),
        ] = None,
        to: Annotated[
            str | None, Query(description="RFC 3339, exclusive; absent: all until now.", examples=[_EXAMPLE])
        ] = None,
        step: Annotated[
            Literal["hour", "day", "week"], Query(description="Windows; weeks begin on Monday, UTC.")
        ] = "hour",
        by: Annotated[
            Literal["source"] | None,
            Query(description="`source`: a row per source that named the items; several may name one."),
        ] = None,
    ) -> Json:
        first, end = _micros("from", since), _micros("to", to)
        if first is not None and end is not None and first >= end:
            raise wrong("from", since, f"a time before to, {to}")
        return Json(await service.ctr(surface, first, end, step, by == "source"))

    @router.get(
        "/v1/stats/trending",
        summary="What is looked at most just now",
        responses={200: {"model": TrendingAnswer}, **problems(404, 422, 503)},
        **raw,
    )
    async def trending(
        surface: Annotated[
            Name | None, Query(description="Absent: the first of the settings.", examples=["home"])
        ] = None,
        k: Annotated[int, Query(ge=1, le=500, description="Items wanted.")] = 10,
    ) -> Json:
        return Json(await service.trending(surface, k))

    return router


def _micros(name: str, text: str | None) -> int | None:
    """The time in microseconds. Raises Problem 422."""
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise wrong(name, text, str(error)) from None
