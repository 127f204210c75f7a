"""Routes and limits as one application, over any `Service`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from app.api.bundles import bundles_routes
from app.api.edge import Edge
from app.api.events import events_routes
from app.api.health import health_routes
from app.api.items import items_routes
from app.api.lanes import lanes
from app.api.recommend import recommend_routes
from app.api.routing import install_handlers, problems
from app.api.schemas import ProblemAnswer
from app.api.service import Service
from app.api.stats import stats_routes
from app.api.users import users_routes

DESCRIPTION = (
    "One endpoint: recommendations from the last second's events, the events themselves, items, users, bundles, live "
    "figures."
)


def create_application(service: Service) -> FastAPI:
    """All routes; the OpenAPI document at `/openapi.json`."""
    app = FastAPI(title="Manta", version=_version(), description=DESCRIPTION, redirect_slashes=False)
    for routes in (
        recommend_routes,
        events_routes,
        items_routes,
        users_routes,
        bundles_routes,
        stats_routes,
        health_routes,
    ):
        app.include_router(routes(service))
    install_handlers(app)
    _document_problems(app)
    return app


def create_edge(service: Service, app: ASGIApp | None = None) -> Edge:
    """The application behind its limits: what a server serves."""
    settings = service.settings
    return Edge(
        app or create_application(service),
        lanes(service),
        max_body_bytes=settings.http.max_body_bytes,
        max_in_flight=settings.serve.max_ongoing_requests,
    )


def _document_problems(app: FastAPI) -> None:
    """Adds the problem's schema to the document, and takes FastAPI's own form of 422 out of it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            for operations in document["paths"].values():
                for operation in operations.values():
                    if "422" in operation["responses"]:
                        operation["responses"]["422"] = problems(422)[422]
            schemas = document["components"]["schemas"]
            schemas[ProblemAnswer.__name__] = ProblemAnswer.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _version() -> str:
    try:
        return version("manta")
    except PackageNotFoundError:
        return "0"
