"""Lines about requests: what was asked, and of whom only the salted hash."""

import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.edge import Edge
from app.chain.request import Answer, Request
from app.erasure.erased import Salt
from deployments.access_log import AccessLog

SALT = Salt(b"salt")
ANN = SALT.shown("ann")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/users/ann", {"path": "/v1/users/*", "user": ANN}),
        ("/v1/users/ann/history", {"path": "/v1/users/*/history", "user": ANN}),
        ("/v1/users/ann/merge", {"path": "/v1/users/*/merge", "user": ANN}),
        ("/v1/users/a/b", {"path": "/v1/users/*", "user": SALT.shown("a/b")}),
        ("/v1/recommend/ann", {"path": "/v1/recommend/*", "user": ANN}),
        ("/v1/recommend/batch", {"path": "/v1/recommend/batch"}),
        ("/v1/items/ann", {"path": "/v1/items/ann"}),
    ],
)
def test_a_path_names_nobody(path: str, shown: dict[str, str]) -> None:
    lines: list[str] = []
    AccessLog(SALT, lines.append).request("GET", path, 200, 0.0125)
    (line,) = map(json.loads, lines)
    assert line.pop("time")
    assert line == {"method": "GET", **shown, "status": 200, "ms": 12.5}


def test_an_answer_names_nobody(make_answer: Answer) -> None:
    lines: list[str] = []
    AccessLog(SALT, lines.append).answered(Request(user_id="ann", request_id="r"), make_answer)
    line = json.loads(lines[0])
    assert (line["request_id"], line["user"], line["items"]) == ("r", ANN, 0)
    assert '"ann"' not in lines[0]


@pytest.fixture
def make_answer() -> Answer:
    return Answer("r", "home", "champion", "b", None, None, (), {})


async def test_the_edge_tells_of_what_no_lane_answers() -> None:
    async def application(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(_: Message) -> None:
        return

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    async def lane(_: bytes) -> tuple[int, bytes, dict[str, str]]:
        return 200, b"{}", {}

    told: list[tuple[str, str, int]] = []
    edge = Edge(application, {("/v1/recommend", b""): lane}, max_body_bytes=100, max_in_flight=1)
    edge.log = lambda method, path, status, seconds: told.append((method, path, status)) if seconds >= 0 else None
    headers = [(b"content-type", b"application/json")]
    for method, path in (("POST", "/v1/recommend"), ("GET", "/v1/users/ann")):
        await edge(
            {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}, receive, send
        )
    assert told == [("GET", "/v1/users/ann", 404)]
