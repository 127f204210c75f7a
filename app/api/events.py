"""Route: POST /v1/events."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query

from app.api.problems import FieldError, Problem, wanted_in, wrong
from app.api.routing import Json, StrictRoute, problems
from app.api.schemas import EventsAnswer
from app.api.service import Service

EVENTS_PATH = "/v1/events"
MOST = 1000
_ONE = {"user_id": "42", "item_id": "318", "event_type": "click"}
_EXAMPLES = {
    "one": {"value": _ONE},
    "a list": {"value": [_ONE, {"session_id": "s-1", "item_id": "296", "event_type": "rating", "value": 4.5}]},
    "an envelope": {"value": {"events": [_ONE]}},
}


def events_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter(route_class=StrictRoute, tags=["events"])

    @router.post(
        EVENTS_PATH,
        summary="Post events",
        status_code=202,
        response_model=None,
        response_class=Json,
        responses={202: {"model": EventsAnswer}, **problems(400, 413, 415, 422, 503)},
    )
    async def post(
        body: Annotated[dict[str, Any] | list[Any], Body(openapi_examples=_EXAMPLES)],
        wait: Annotated[Literal["applied"] | None, Query(description="Answer once the state holds them.")] = None,
    ) -> Json:
        return Json(await post_events(service, entries(body, "events"), wait == "applied"), 202)

    return router


async def post_events(service: Service, events: list[Any], wait: bool) -> Mapping[str, Any]:
    """The answer; raises a Problem where all events are wrong."""
    answer = await service.post_events(events, wait)
    refuse_all_wrong(events, answer["rejected"])
    return answer


def entries(body: dict[str, Any] | list[Any], key: str, single: bool = True) -> list[Any]:
    """The entries of a body that is one entry, a list, or `{KEY: […]}`.

    Raises:
        Problem: 422, more than 1,000 entries, an envelope with other keys, or one entry where `single` is false.
    """
    if isinstance(body, list):
        found = body
    elif isinstance(body.get(key), list):
        others = [name for name in body if name != key]
        if others:
            raise Problem(
                422, f"{others[0]}: no such key", [FieldError(name, body[name], "no such key") for name in others]
            )
        found = body[key]
    elif single and key not in body:
        found = [body]
    else:
        raise wrong(key, body.get(key), "a list")
    if len(found) > MOST:
        raise wrong(key, f"{len(found)} entries", f"at most {MOST} entries")
    return found


def refuse_all_wrong(posted: Sequence[Any], rejected: Sequence[Mapping[str, Any]]) -> None:
    """422 where nothing of what was posted could be taken."""
    if posted and len(rejected) == len(posted):
        errors = [_field_error(posted, one) for one in rejected[:20]]
        raise Problem(422, rejected[0]["message"], errors, more={"accepted": 0, "rejected": list(rejected)})


def _field_error(posted: Sequence[Any], rejected: Mapping[str, Any]) -> FieldError:
    """The field by its own name where one entry was posted, else behind the entry's index."""
    raw, field = posted[rejected["index"]], rejected.get("field")
    found = raw.get(field) if isinstance(raw, dict) and field is not None else raw if field is None else None
    place = [str(rejected["index"])] if len(posted) > 1 else []
    where = ".".join([*place, *([field] if field else [])]) or "body"
    return FieldError(where, found, wanted_in(rejected["message"]))
