"""The outermost layer, plain ASGI: sheds, bounds the body, refuses what is no JSON, and answers the hot path itself.

Everything here happens before routing and parsing. A request that passes is handed on with its body already read.
"""

from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import CONTENT_TYPE, Problem, unreadable

Reply = tuple[int, bytes, dict[str, str]]  # status, body, further headers
Lane = Callable[[bytes], Awaitable[Reply]]
Lanes = Mapping[tuple[str, bytes], Lane]  # by path and query

# Asked by those who watch the service: answered also when it is full.
NEVER_SHED = frozenset({"/healthz", "/readyz", "/metrics"})
# A client that sends too much is read up to this (and nothing kept), so that it sees the answer and no broken pipe.
DRAIN_BYTES = 64_000_000
ADMITTED = "manta.admitted"  # in the scope of a request that has passed
_JSON = b"application/json"
_PROBLEM = CONTENT_TYPE.encode()


class Edge:
    """Limits around an application.

    Attributes:
        in_flight: requests being worked on.
        in_lanes: those of them that a lane answers.
        shed: requests refused with 429 so far.
        log: told of each request that no lane answers: method, path, status, seconds; None: nobody wants to know.
    """

    def __init__(self, app: ASGIApp, lanes: Lanes, *, max_body_bytes: int, max_in_flight: int) -> None:
        """`lanes`: what answers a POST there from the body alone, past routing."""
        self._app = app
        self._lanes = dict(lanes)
        self._max_body = max_body_bytes
        self._max_in_flight = max_in_flight
        self.in_flight = 0
        self.in_lanes = 0
        self.shed = 0
        self.log: Callable[[str, str, int, float], None] | None = None
        full = Problem(429, f"{max_in_flight} requests are in flight already", retry_after_s=1)
        self._full = _messages((429, full.encode(), full.headers))
        large = Problem(413, f"a body may have {max_body_bytes} bytes")
        self._large = _messages((413, large.encode(), {}))
        other = Problem(415, "the body must be application/json, and its Content-Type must say so")
        self._other = _messages((415, other.encode(), {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an application of its own; what `handle` has let through already goes straight to the routes."""
        if scope["type"] != "http" or ADMITTED in scope:
            await self._app(scope, receive, send)
        else:
            await self.handle(scope, receive, send, self._app)

    async def handle(self, scope: Scope, receive: Receive, send: Send, onward: ASGIApp) -> None:
        """Sheds, refuses or answers; else goes on to `onward` with the body read."""
        if self.in_flight >= self._max_in_flight and scope["path"] not in NEVER_SHED:
            self.shed += 1
            await _send(send, self._full)
            return
        self.in_flight += 1
        try:
            if self.log is None or (scope["path"], scope["query_string"]) in self._lanes:
                await self._admitted(scope, receive, send, onward)
            else:
                await self._logged(self.log, scope, receive, send, onward)
        finally:
            self.in_flight -= 1

    async def _logged(
        self, log: Callable[[str, str, int, float], None], scope: Scope, receive: Receive, send: Send, onward: ASGIApp
    ) -> None:
        began, status = perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admitted(scope, receive, watched, onward)
        finally:
            log(scope["method"], scope["path"], status, perf_counter() - began)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send, onward: ASGIApp) -> None:
        scope[ADMITTED] = True
        if scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            if "�" in scope["path"]:
                await _send(send, _messages(_reply(unreadable("broken UTF-8 in the path"))))
                return
            await onward(scope, receive, send)
            return
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body", False) or len(body) > self._max_body:
            whole = await _read(body, message.get("more_body", False), receive, self._max_body)
            if whole is None:
                await _send(send, self._large)
                return
            body = whole
        if body and not _is_json(scope["headers"]):
            await _send(send, self._other)
            return
        lane = self._lanes.get((scope["path"], scope["query_string"])) if scope["method"] == "POST" else None
        if lane is not None:
            self.in_lanes += 1
            try:
                reply = await lane(body)
            finally:
                self.in_lanes -= 1
            await _send(send, _messages(reply))
            return
        if "�" in scope["path"]:
            await _send(send, _messages(_reply(unreadable("broken UTF-8 in the path"))))
            return
        await onward(scope, _Replay(body, receive), send)


class _Replay:
    """`receive` for the application: the body that was read, then whatever comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}


async def _read(first: bytes, more: bool, receive: Receive, limit: int) -> bytes | None:
    """The whole body; None: longer than `limit` (drained)."""
    parts, size = [first], len(first)
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > DRAIN_BYTES:
            break
        more = message.get("more_body", False)
    return b"".join(parts) if size <= limit else None


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-type":
            kind = value.split(b";", 1)[0].strip().lower()
            return kind == _JSON or (kind.startswith(b"application/") and kind.endswith(b"+json"))
    return False


def _reply(problem: Problem) -> Reply:
    return problem.status, problem.encode(), problem.headers


def _messages(reply: Reply) -> tuple[Message, Message]:
    status, body, more = reply
    headers = [
        (b"content-type", _JSON if status < 400 else _PROBLEM),
        (b"content-length", b"%d" % len(body)),
    ]
    if more:
        headers.extend((name.lower().encode(), value.encode()) for name, value in more.items())
    return {"type": "http.response.start", "status": status, "headers": headers}, {
        "type": "http.response.body",
        "body": body,
    }


async def _send(send: Send, messages: tuple[Message, Message]) -> None:
    await send(messages[0])
    await send(messages[1])
