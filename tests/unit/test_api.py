"""The HTTP contract over a fake service: every shape, status code and problem body, without Ray."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from app.api.application import create_application, create_edge
from app.api.events import refuse_all_wrong
from app.api.problems import Problem
from app.settings import Settings
from tests.unit.fake_service import FakeService

DEEP: Any = 1
for _ in range(300):
    DEEP = [DEEP]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    edge = create_edge(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://manta") as client:
        yield client


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "errors"} <= set(body)
    assert body["status"] == status
    assert all({"field", "found", "wanted"} == set(error) for error in body["errors"])
    assert "Traceback" not in response.text
    return body


async def test_recommend_passes_every_field(client: httpx.AsyncClient, service: FakeService) -> None:
    body = {
        "surface": "home", "user_id": "42", "session_id": None, "k": 3, "exclude": ["17"],
        "filters": {"genres": {"any": ["Drama"]}, "year": {"gte": 1990, "lt": 2000.5}}, "items": None,
        "candidates": None, "history": ["1", "1"], "context": {"device": "mobile", "deep": {"x": [1]}},
        "explain": False, "timeout_ms": 100,
    }  # fmt: skip
    response = await client.post("/v1/recommend", json=body)
    assert response.status_code == 200
    assert [item["item_id"] for item in response.json()["items"]] == ["1", "2", "3"]
    asked = service.asked[0].model_dump(exclude_unset=True)
    asked["filters"] = {"genres": {"any": ["Drama"]}, "year": {"gte": 1990, "lt": 2000.5}}
    assert asked == body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": "1"}, "k"), ({"k": 1.5}, "k"), ({"k": True}, "k"), ({"k": 0}, "k"), ({"k": -1}, "k"), ({"k": 501}, "k"),
        ({"user_id": 42}, "user_id"), ({"user_id": ""}, "user_id"), ({"user_id": "é" * 65}, "user_id"),
        ({"exclude": ["1"] * 1001}, "exclude"), ({"exclude": "1"}, "exclude"), ({"exclude": [1]}, "exclude.0"),
        ({"history": ["1"] * 1001}, "history"), ({"items": ["1"] * 101}, "items"),
        ({"candidates": ["1"] * 1001}, "candidates"), ({"unknown": 1}, "unknown"), ({"explain": 1}, "explain"),
        ({"timeout_ms": 0}, "timeout_ms"), ({"timeout_ms": 10_001}, "timeout_ms"), ({"context": []}, "context"),
        ({"context": {"x": DEEP}}, "context"),
        ({"filters": {"genres": {"like": "x"}}}, "filters.genres.like"), ({"filters": []}, "filters"),
        ([], "body"), ("x", "body"), (1, "body"),
    ],
)  # fmt: skip
async def test_wrong_values_are_422_and_named(client: httpx.AsyncClient, body: Any, field: str) -> None:
    for answer in (
        await client.post("/v1/recommend", json=body),
        await client.post("/v1/recommend/batch", json={"requests": [body]}),
    ):
        if answer.status_code == 200:
            problem = answer.json()["responses"][0]["problem"]
            assert problem["status"] == 422
        else:
            problem = check_problem(answer, 422)
        assert problem["errors"][0]["field"] == field


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"{'k': 1}", b'{"context": {"x": NaN}}', b'{"context": {"x": Infinity}}', b'{"user_id": "\xff"}',
            b'\xef\xbb\xbf{}', b'{"a": "\\ud800"}', b"[" * 100_000, b'{"k": 1}garbage']
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/recommend/batch", "/v1/events", "/v1/items", "/v1/similar"])
async def test_unreadable_is_400(client: httpx.AsyncClient, raw: bytes, path: str) -> None:
    response = await client.post(path, content=raw, headers={"content-type": "application/json"})
    check_problem(response, 400)


async def test_too_large_and_not_json(client: httpx.AsyncClient) -> None:
    json_type = {"content-type": "application/json"}
    check_problem(
        await client.post("/v1/recommend", content=b'{"a":"%s"}' % (b"x" * 10_000_000), headers=json_type), 413
    )

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    check_problem(await client.post("/v1/events", content=chunks(), headers=json_type), 413)
    check_problem(await client.post("/v1/recommend", content=b"k=1", headers={"content-type": "text/plain"}), 415)
    check_problem(await client.post("/v1/recommend", content=b"{}"), 415)
    check_problem(await client.put("/v1/items/1", content=b"{}", headers={"content-type": "text/csv"}), 415)
    good = await client.post(
        "/v1/recommend", content=b"{}", headers={"content-type": "application/json; charset=utf-8"}
    )
    assert good.status_code == 200


async def test_unknown_paths_methods_surfaces_and_keys(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/nothing"), 404)
    check_problem(await client.post("/v1/recommend", json={"surface": "nowhere"}), 404)
    late = check_problem(await client.post("/v1/recommend", json={"user_id": "invalid"}), 422)
    assert late["errors"] == [{"field": "filters.x", "found": "x", "wanted": "a column"}]
    wrong_method = await client.put("/v1/recommend", json={})
    check_problem(wrong_method, 405)
    assert wrong_method.headers["allow"] == "POST"
    check_problem(await client.get("/v1/recommend/42?l=1"), 422)
    check_problem(await client.get("/v1/recommend/42?k=x"), 422)
    check_problem(await client.get("/v1/recommend/42?k=501"), 422)
    check_problem(await client.post("/v1/events?wait=later", json={"event_type": "x"}), 422)
    check_problem(await client.get("/v1/bundles/none"), 404)
    check_problem(await client.get("/v1/promotions/none"), 404)
    check_problem(await client.post("/v1/surfaces/none/rollback"), 404)
    check_problem(await client.get("/v1/items/none"), 404)
    check_problem(await client.get("/v1/items/%ff"), 400)


async def test_a_crash_shows_nothing_and_the_server_goes_on(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post("/v1/recommend", json={"user_id": "crash"}),
        await client.get("/v1/recommend/crash"),
    ):
        assert "secret" not in str(check_problem(response, 500))
    assert (await client.post("/v1/recommend", json={})).status_code == 200


async def test_by_hand_is_the_same(client: httpx.AsyncClient, service: FakeService) -> None:
    by_hand = await client.get("/v1/recommend/a/b%20c?surface=home&k=2")
    posted = await client.post("/v1/recommend", json={"user_id": "a/b c", "surface": "home", "k": 2})
    assert by_hand.json() == posted.json()
    assert service.asked[0].user_id == service.asked[1].user_id == "a/b c"
    similar = await client.get("/v1/similar/318?k=4")
    assert len(similar.json()["items"]) == 4
    assert similar.json() == (await client.post("/v1/similar", json={"item_id": "318", "k": 4})).json()


async def test_batch_answers_in_order(client: httpx.AsyncClient) -> None:
    requests = [{"k": 1}, {"k": 0}, {"surface": "nowhere"}, {"k": 2}]
    response = await client.post("/v1/recommend/batch", json={"requests": requests})
    assert response.status_code == 200
    first, second, third, fourth = response.json()["responses"]
    assert (len(first["items"]), len(fourth["items"])) == (1, 2)
    assert (second["problem"]["status"], third["problem"]["status"]) == (422, 404)
    check_problem(await client.post("/v1/recommend/batch", json={"requests": [{}] * 257}), 422)
    check_problem(await client.post("/v1/recommend/batch", json={"requests": {}}), 422)
    check_problem(await client.post("/v1/recommend/batch", json={"requests": [], "more": 1}), 422)
    assert (await client.post("/v1/recommend/batch", json={"requests": []})).json() == {"responses": []}


async def test_events(client: httpx.AsyncClient, service: FakeService) -> None:
    good, bad = {"user_id": "1", "item_id": "2", "event_type": "click", "anything": 1}, {"user_id": "1"}
    one = await client.post("/v1/events", json=good)
    assert (one.status_code, one.json()) == (202, {"accepted": 1, "applied": None, "rejected": []})
    some = await client.post("/v1/events?wait=applied", json=[good, bad])
    assert some.status_code == 202
    assert (some.json()["applied"], some.json()["rejected"][0]["index"]) == (True, 1)
    assert (await client.post("/v1/events", json={"events": [good] * 1000})).json()["accepted"] == 1000
    check_problem(await client.post("/v1/events", json={"events": [good] * 1001}), 422)
    check_problem(await client.post("/v1/events", json={"events": [good], "other": 1}), 422)
    check_problem(await client.post("/v1/events", json=bad), 422)
    check_problem(await client.post("/v1/events", json=[bad, bad]), 422)
    check_problem(await client.post("/v1/events", json=7), 422)
    assert (await client.post("/v1/events", json=[])).status_code == 202
    service.broker = False
    down = await client.post("/v1/events", json=good)
    check_problem(down, 503)
    assert int(down.headers["retry-after"]) >= 1


async def test_items_and_users(client: httpx.AsyncClient) -> None:
    assert (await client.put("/v1/items/1", json={"title": "x"})).status_code == 200
    new = await client.put("/v1/items/x/y", json={"title": "x", "item_id": "x/y"})
    assert (new.status_code, new.json()["item_id"]) == (201, "x/y")
    check_problem(await client.put("/v1/items/1", json={"item_id": "2"}), 422)
    check_problem(await client.put("/v1/items/" + "x" * 129, json={}), 422)
    check_problem(await client.put("/v1/items/1", json=[]), 422)
    assert (await client.post("/v1/items", json=[{"item_id": "1"}, {}])).json()["accepted"] == 1
    check_problem(await client.post("/v1/items", json={"items": [{}]}), 422)
    check_problem(await client.post("/v1/items", json={"item_id": "1"}), 422)
    assert (await client.delete("/v1/items/1")).status_code == 204
    check_problem(await client.delete("/v1/items/none"), 404)
    assert (await client.get("/v1/users/7/history")).json() == {"user_id": "7", "items": [], "version": 0}
    check_problem(await client.get("/v1/users/7"), 404)
    assert (await client.put("/v1/users/7", json={"age": 4})).json() == {"user_id": "7", "age": 4}
    assert (await client.post("/v1/users/7/merge", json={"session_id": "s"})).status_code == 202
    check_problem(await client.post("/v1/users/7/merge", json={"session_id": "taken"}), 409)
    check_problem(await client.post("/v1/users/7/merge", json={}), 422)
    begun = await client.delete("/v1/users/7")
    assert (begun.status_code, begun.json()) == (202, {"erasure": "e-1"})
    found = (await client.get("/v1/erasures/e-1")).json()
    assert (found["state"], found["places"]) == ("done", [{"place": "state", "cleared": "2026-11-21T10:15:00Z"}])
    check_problem(await client.get("/v1/erasures/e-2"), 404)
    check_problem(await client.delete("/v1/users/" + "x" * 129), 422)


async def test_bundles(client: httpx.AsyncClient) -> None:
    pages = [(await client.get(f"/v1/bundles?limit=2{after}")).json()["bundles"] for after in ("", "&after=b2")]
    assert pages == [[{"bundle": "b3"}, {"bundle": "b2"}], [{"bundle": "b1"}]]
    refused = check_problem(await client.post("/v1/bundles/b1/promote"), 409)
    assert refused["figures"] == {"champion": 0.2, "challenger": 0.1}
    started = await client.post("/v1/bundles/b1/promote", json={"force": True})
    assert (started.status_code, started.json()["promotion"]) == (202, "p1")
    check_problem(await client.post("/v1/bundles/b1/promote", json={"force": 1}), 422)
    check_problem(await client.post("/v1/bundles/b1/promote", json={"now": True}), 422)
    assert (await client.get("/v1/promotions/p1")).json()["replicas"] == {"loaded": 2, "total": 2}
    assert (await client.post("/v1/surfaces/home/rollback")).status_code == 202


async def test_health(client: httpx.AsyncClient, service: FakeService) -> None:
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).json()["ready"] is True
    service.ready = False
    problem = check_problem(await client.get("/readyz"), 503)
    assert problem["stages"] == {"state": {"ready": False}}
    assert (await client.get("/metrics")).text.startswith("# HELP manta_")


async def test_shedding_comes_first() -> None:
    """With all places taken the next gets 429 with Retry-After; health is still answered; places come free again."""
    service = FakeService(Settings.model_validate({"serve": {"max_ongoing_requests": 2}}))
    gate = asyncio.Event()
    answer = service.recommend

    async def slow(body: Any) -> Any:
        await gate.wait()
        return await answer(body)

    service.recommend = slow  # type: ignore[method-assign]
    edge = create_edge(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://manta") as client:
        held = [asyncio.create_task(client.post("/v1/recommend", json={})) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert edge.in_flight == 2
        full = await client.post("/v1/recommend", content=b"not json")
        check_problem(full, 429)
        assert full.headers["retry-after"] == "1"
        assert (await client.get("/healthz")).status_code == 200
        gate.set()
        assert [(await one).status_code for one in held] == [200, 200]
        assert (await client.post("/v1/recommend", json={})).status_code == 200
        assert (edge.in_flight, edge.shed) == (0, 1)


def test_the_document_has_examples_and_resolves() -> None:
    document = create_application(FakeService()).openapi()
    text = orjson.dumps(document).decode()
    for path in ("/v1/recommend", "/v1/recommend/batch", "/v1/events", "/v1/items/{item_id}"):
        operation = next(iter(document["paths"][path].values()))
        assert operation["requestBody"]["content"]["application/json"]["examples"], path
    names = set(document["components"]["schemas"])
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.split('"', 1)[0] in names


async def test_the_hot_path_refuses_what_the_routes_refuse(client: httpx.AsyncClient) -> None:
    for path in ("/v1/recommend", "/v1/events"):
        problem = check_problem(await client.post(path, json={"user_id": "u"}, params={"x": "1"}), 422)
        assert problem["errors"][0]["field"] == "x"
    for raw in (b"3", b'"text"', b"null"):
        headers = {"content-type": "application/json"}
        assert check_problem(await client.post("/v1/events", content=raw, headers=headers), 422)["errors"]
    assert (await client.post("/v1/events", json=[], params={"wait": "applied"})).status_code == 202


async def test_figures_are_asked_for_by_time_step_and_source(client: httpx.AsyncClient, service: FakeService) -> None:
    span = {"from": "2026-11-21T10:00:00+01:00", "to": "2026-11-21T12:00:00Z"}
    response = await client.get("/v1/stats/ctr", params={"surface": "home", **span, "step": "day", "by": "source"})
    assert response.status_code == 200
    assert set(response.json()["buckets"][0]) == {
        *("start", "end", "surface", "variant", "bundle", "source", "impressions", "clicks", "conversions", "ctr"),
        "final",
    }
    assert service.asked[0] == ("home", 1_795_251_600_000_000, 1_795_262_400_000_000, "day", True)
    plain = await client.get("/v1/stats/ctr")
    assert service.asked[1] == (None, None, None, "hour", False)
    assert "source" not in plain.json()["buckets"][0]
    trending = (await client.get("/v1/stats/trending", params={"surface": "home", "k": 5})).json()
    assert set(trending) == {"items", "window", "watermark"}


@pytest.mark.parametrize(
    ("path", "params", "status", "field"),
    [
        ("ctr", {"from": "yesterday"}, 422, "from"),
        ("ctr", {"to": "2026-13-01T00:00:00Z"}, 422, "to"),
        ("ctr", {"from": "2026-11-21T10:00:00Z", "to": "2026-11-21T10:00:00Z"}, 422, "from"),
        ("ctr", {"step": "month"}, 422, "step"),
        ("ctr", {"by": "variant"}, 422, "by"),
        ("ctr", {"surfaces": "home"}, 422, "surfaces"),
        ("ctr", {"surface": "nowhere"}, 404, None),
        ("trending", {"surface": "nowhere"}, 404, None),
        ("trending", {"k": "0"}, 422, "k"),
        ("trending", {"k": "501"}, 422, "k"),
    ],
)
async def test_wrong_questions_for_figures(
    client: httpx.AsyncClient, path: str, params: dict[str, str], status: int, field: str | None
) -> None:
    problem = check_problem(await client.get(f"/v1/stats/{path}", params=params), status)
    assert [error["field"] for error in problem["errors"]] == ([] if field is None else [field])


async def test_what_is_wrong_is_named_with_its_field_and_what_was_found(client: httpx.AsyncClient) -> None:
    one = check_problem(await client.post("/v1/items", json={"items": 3}), 422)
    assert one["errors"][0]["field"] == "items"
    nothing = {"content-type": "application/json"}
    assert (
        check_problem(await client.post("/v1/items", content=b"null", headers=nothing), 422)["errors"][0]["field"]
        == "body"
    )
    assert (
        check_problem(await client.post("/v1/surfaces/home/rollback", json={"x": 1}), 422)["errors"][0]["field"] == "x"
    )


def test_a_refused_entry_is_shown_with_its_own_value() -> None:
    rejected = [{"index": 0, "code": "range", "message": "user_id: wanted less", "field": "user_id"}]
    with pytest.raises(Problem) as refused:
        refuse_all_wrong([{"user_id": "u" * 200}], rejected)
    assert refused.value.errors[0].field == "user_id"
    assert refused.value.errors[0].found == "u" * 200
    twice = [*rejected, {"index": 1, "code": "type", "message": "found 3, wanted an object"}]
    with pytest.raises(Problem) as refused:
        refuse_all_wrong([{"user_id": ""}, 3], twice)
    found = [(one.field, one.found, one.wanted) for one in refused.value.errors]
    assert found == [("0.user_id", "", "user_id: wanted less"), ("1", 3, "an object")]


async def test_a_long_history_comes_in_pages() -> None:
    class Long(FakeService):
        async def history(self, user_id: str) -> dict[str, Any]:
            return {"user_id": user_id, "items": [{"item_id": str(n)} for n in range(5)], "version": 5}

    transport = httpx.ASGITransport(create_edge(Long()))
    async with httpx.AsyncClient(transport=transport, base_url="http://manta") as client:
        whole = (await client.get("/v1/users/u/history")).json()
        assert len(whole["items"]) == 5
        found: list[str] = []
        after: int | None = 0
        while after is not None:
            page = (await client.get(f"/v1/users/u/history?limit=2&after={after}")).json()
            found += [item["item_id"] for item in page["items"]]
            after = page["next"]
        assert found == ["0", "1", "2", "3", "4"]
