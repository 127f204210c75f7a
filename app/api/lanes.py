"""What the edge answers itself, past routing: a POST from the bytes of its body to the bytes of its answer."""

from collections.abc import Awaitable, Callable

import orjson
from pydantic import ValidationError

from app.api.edge import Lane, Lanes, Reply
from app.api.events import EVENTS_PATH, entries, post_events
from app.api.problems import encode, invalid, shown_problem, unreadable, wrong
from app.api.recommend import RECOMMEND
from app.api.schemas import RecommendBody
from app.api.service import Service


def lanes(service: Service) -> Lanes:
    """The hot path. Any other query goes the long way, which knows what is wrong with it."""
    return {
        (RECOMMEND, b""): _guarded(_recommend(service)),
        (EVENTS_PATH, b""): _guarded(_events(service, wait=False)),
        (EVENTS_PATH, b"wait=applied"): _guarded(_events(service, wait=True)),
    }


def _recommend(service: Service) -> Callable[[bytes], Awaitable[Reply]]:
    """Parsed once, validated once, encoded once."""
    validate = RecommendBody.__pydantic_validator__.validate_python
    loads, dumps = orjson.loads, orjson.dumps

    async def answer(body: bytes) -> Reply:
        return 200, dumps(await service.recommend(validate(loads(body)))), {}

    return answer


def _events(service: Service, *, wait: bool) -> Callable[[bytes], Awaitable[Reply]]:
    async def answer(body: bytes) -> Reply:
        found = orjson.loads(body)
        if not isinstance(found, dict | list):
            raise wrong("body", found, "an event, a list of events, or an object with events")
        return 202, encode(await post_events(service, entries(found, "events"), wait)), {}

    return answer


def _guarded(work: Callable[[bytes], Awaitable[Reply]]) -> Lane:
    """Every error becomes a problem."""

    async def answer(body: bytes) -> Reply:
        try:
            return await work(body)
        except ValidationError as error:
            problem = invalid(error.errors(include_url=False))
        except orjson.JSONDecodeError as error:
            problem = unreadable(str(error))
        except Exception as error:
            problem = shown_problem(error)
        return problem.status, problem.encode(), problem.headers

    return answer
