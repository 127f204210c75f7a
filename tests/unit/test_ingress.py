"""The door of a replica's process: what the edge answers itself, and what goes on through Serve."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.api.application import create_edge
from deployments import ingress
from deployments.scaling import IN_FLIGHT, by_requests_in_flight
from tests.unit.fake_service import FakeService


@pytest.fixture(autouse=True)
def _nothing_served() -> Iterator[None]:
    yield
    ingress._served.clear()


class Serve:
    """Serve's application: notes what reaches it, and hands it to the replica's."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.inner = create_edge(FakeService())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["path"])
        if scope["path"].startswith("/-/"):
            await PlainTextResponse("serve")(scope, receive, send)
        else:
            await self.inner(scope, receive, send)


async def test_the_hot_path_does_not_pass_through_serve() -> None:
    serve = Serve()
    door = ingress.Ingress(serve)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://manta") as client:
        assert (await client.post("/v1/recommend", json={})).status_code == 200
        assert serve.seen == ["/v1/recommend"]  # nothing is served from this process: all goes through
        serve.seen.clear()
        edge = create_edge(FakeService())
        ingress.serve_from(edge)
        assert (await client.post("/v1/recommend", json={"k": 3})).json()["bundle"] == "b1"
        assert (await client.post("/v1/recommend", content=b"x" * 2_000_000)).status_code == 413
        assert serve.seen == []
        assert (await client.get("/-/healthz")).text == "serve"
        assert (await client.post("/v1/events", json={"event_type": "x"})).status_code == 202
        assert (await client.get("/v1/surfaces")).status_code == 200
        assert serve.seen == ["/-/healthz", "/v1/surfaces"]
        assert (edge.in_flight, ingress.in_flight()) == (0, 0)


def test_an_edge_of_another_loop_is_left_alone() -> None:
    async def elsewhere() -> None:
        ingress.serve_from(create_edge(FakeService()))

    asyncio.run(elsewhere())

    async def here() -> list[str]:
        serve = Serve()
        transport = httpx.ASGITransport(ingress.Ingress(serve))
        async with httpx.AsyncClient(transport=transport, base_url="http://manta") as client:
            assert (await client.post("/v1/recommend", json={})).status_code == 200
        return serve.seen

    assert asyncio.run(here()) == ["/v1/recommend"]


class Context:
    """What Serve tells the policy."""

    class config:  # noqa: N801 - as Serve has it
        @staticmethod
        def get_target_ongoing_requests() -> float:
            return 4.0

    current_num_replicas = 2
    target_num_replicas = 2
    total_num_requests = 2.0
    aggregated_metrics = {IN_FLIGHT: {"r1": 6.0, "r2": 4.0}}  # noqa: RUF012


def test_scaling_counts_what_serve_does_not_see() -> None:
    assert by_requests_in_flight(Context()) == (3.0, {})
