"""How every route of ours is: bodies read by orjson (strict JSON), unknown query keys refused, errors as problems."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.api.problems import CONTENT_TYPE, FieldError, Problem, encode, invalid, shown_problem, unreadable
from app.api.schemas import ProblemAnswer
from app.errors import MantaError

MEANINGS = {
    400: "Not JSON, broken UTF-8 or NaN",
    404: "Unknown id, surface or path",
    405: "Method not allowed",
    409: "Conflict",
    413: "Body over the limit",
    415: "Not JSON",
    422: "Wrong values",
    429: "Too many requests in flight",
    503: "Not available now",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of a route's errors."""
    return {
        status: {
            "description": MEANINGS[status],
            "content": {CONTENT_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemAnswer.__name__}"}}},
        }
        for status in (*statuses, 429)
    }


class Json(Response):
    """An answer that is encoded already, or is by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else encode(content)


class _StrictRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is strict JSON and whose query has no unknown key. An empty query value counts as absent."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        allowed = {parameter.alias for parameter in self.dependant.query_params}
        needs_body = any(parameter.field_info.is_required() for parameter in self.dependant.body_params)

        async def strict(request: Request) -> Response:
            for key, value in request.query_params.items():
                if key not in allowed:
                    raise Problem(422, f"query: {key}: no such key", [FieldError(key, value, "no such key")])
            asked = _StrictRequest(request.scope, request.receive)
            if needs_body and not await asked.body():
                raise unreadable("it is empty")
            try:
                return await handle(asked)
            except (MantaError, HTTPException, RequestValidationError):
                raise
            except Exception as error:
                return problem_response(shown_problem(error))

        return strict


def problem_response(problem: Problem) -> Response:
    """The problem as an answer."""
    return Response(problem.encode(), problem.status, problem.headers, media_type=CONTENT_TYPE)


def install_handlers(app: FastAPI) -> None:
    """Every error of the application becomes a problem."""

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(invalid(error.errors(), skip=1))

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = problem_response(Problem(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    async def on_error(_: Request, error: Exception) -> Response:
        return problem_response(shown_problem(error))

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(MantaError, on_error)
