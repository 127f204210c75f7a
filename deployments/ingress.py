"""The door of a replica's process: Serve's HTTP server hands every request here first.

Serve wraps each request of a replica in bookkeeping (routing, tracing, two tasks, a log line), which costs more than
a recommendation's own parsing. So our edge stands before it as Serve's outermost HTTP middleware: it sheds, bounds
and answers the hot path, and only the rest goes through Serve. What it answers is reported for autoscaling.
"""

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.edge import Edge

IN_FLIGHT = "in_flight"
# What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` must name on every node.
CALLBACK = "deployments.ingress:middlewares"

# The edge of this process's replica and the loop it belongs to; a process of the proxy has none.
_served: list[tuple[Edge, asyncio.AbstractEventLoop]] = []


def serve_from(edge: Edge) -> None:
    """Answers from this edge, from now on, whatever comes in on the running loop."""
    _served[:] = [(edge, asyncio.get_running_loop())]


def in_flight() -> int:
    """Requests that this process works on past Serve's own count."""
    return _served[0][0].in_lanes if _served else 0


def middlewares() -> list[Middleware]:
    """What Serve asks for when it starts an HTTP server."""
    return [Middleware(Ingress)]


class Ingress:
    """ASGI middleware around Serve's application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _served and scope["type"] == "http" and not scope["path"].startswith("/-/"):
            edge, loop = _served[0]
            if loop is asyncio.get_running_loop():
                await edge.handle(scope, receive, send, self._app)
                return
        await self._app(scope, receive, send)
