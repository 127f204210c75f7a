"""The whole system as its first users meet it, through the outside doors alone, on Apache Kafka and real ratings."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.settings import load_settings
from deployments.processes import marked
from deployments.run import Run, read
from scripts.movielens import load_ratings
from tests.cluster.erased import erase_one
from tests.cluster.manta import START_S, free_port, listens, manta

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(2 * START_S)]

Json = dict[str, Any]
EVENTS, COLD_ITEMS = 6000, 50
SETTINGS = """
lake: {partition: month}
surfaces:
  home: {timeout_ms: 3000}
  related: {topology: distributed, anchor: required, timeout_ms: 3000}
  trending: {personal: false, ranked: false, sources: [{family: popularity, k: 200}], timeout_ms: 3000}
serve: {gateway: {min_replicas: 2, max_replicas: 2, num_cpus: 0.1}}
ray: {num_cpus: 2, object_store_bytes: 80000000}
"""
SWEEP = """
name: small
search: random
cpus: 0.5
families: {popularity: {samples: 1}, item_knn: {samples: 1}, content: {samples: 1}}
"""
WORSE = "{name: worse, search: random, cpus: 0.5, families: {popularity: {samples: 1}}}"


@pytest.fixture(scope="module")
def up(short_home: Path, kafka: str) -> Iterator[Run]:
    """An empty system: what it knows comes through its doors."""
    (short_home / "manta.yaml").write_text(SETTINGS)
    words = ("up", "--port", str(free_port()), "--settings", str(short_home / "manta.yaml"))
    try:
        started = manta(short_home, *words, MANTA_KAFKA__BOOTSTRAP_SERVERS=kafka)
        assert started.returncode == 0, started.stderr
        run = read(short_home)
        assert run is not None
        yield run
    finally:
        manta(short_home, "down")


def told(run: Run, *words: str) -> Json:
    """What a command prints as JSON."""
    done = manta(run.home, *words, "--json")
    assert done.returncode == 0, done.stderr
    document: Json = json.loads(done.stdout)
    return document


def ask(run: Run, method: str, path: str, body: Any = None) -> tuple[int, Json]:
    request = urllib.request.Request(run.endpoint + path, None if body is None else json.dumps(body).encode())
    request.method = method
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def recommended(run: Run, **request: Any) -> list[str]:
    status, answer = ask(run, "POST", "/v1/recommend", request)
    assert (status, answer["degraded"]) == (200, None), answer
    return [item["item_id"] for item in answer["items"]]


def clicked(run: Run, item: str, **who: str) -> None:
    event = {**who, "item_id": item, "event_type": "click"}
    status, answer = ask(run, "POST", "/v1/events?wait=applied", event)
    assert (status, answer["accepted"], answer["applied"]) == (202, 1, True)


def promoted(run: Run, path: str, body: Json) -> Json:
    """The promotion once it is not loading any more."""
    status, started = ask(run, "POST", path, body)
    assert status == 202, started
    while True:
        status, promotion = ask(run, "GET", f"/v1/promotions/{started['promotion']}")
        assert status == 200
        if promotion["state"] != "loading":
            return promotion


def live(run: Run) -> set[str | None]:
    return {one["bundle"] for one in ask(run, "GET", "/v1/surfaces")[1]["surfaces"]}


def learned(run: Run, file: Path, text: str) -> str:
    """A sweep's bundle: registered, listed and not live."""
    file.write_text(text)
    report = told(run, "sweep", str(file))
    listed = {row["bundle"]: row for row in told(run, "bundles", "list")["bundles"]}
    assert listed[report["bundle"]]["live"] == []
    assert told(run, "bundles", "verify", report["bundle"])["sound"] is True
    return str(report["bundle"])


def test_the_story(up: Run, tmp_path: Path) -> None:
    items = _events_become_a_lake(up, tmp_path)
    first = _a_sweep_becomes_an_endpoint(up, tmp_path / "small.yaml")
    _answers_are_fresh(up)
    _items_come_and_go(up, items)
    _a_file_goes_straight_into_the_lake(up, tmp_path / "older.jsonl")
    assert told(up, "ingest")["rows"]["events"] == 9, "the clicks and both sides of the merge are real events too"
    settings = up.settings(load_settings(up.settings_file, {}))
    erase_one(up, settings, partial(ask, up), partial(told, up), [item["item_id"] for item in items[:2]])
    _a_worse_bundle_is_refused_and_can_be_taken_back(up, tmp_path / "worse.yaml", first)
    _it_says_what_it_is_and_leaves_nothing(up)


def _events_become_a_lake(run: Run, folder: Path) -> list[Json]:
    """The newest ratings of the past, as files, through Kafka into the lake, each exactly once."""
    ratings = load_ratings()
    events = ratings.split()[0][-EVENTS:]
    known = {event["item_id"] for event in events}
    cold = [item["item_id"] for item in ratings.items if item["item_id"] not in known][:COLD_ITEMS]
    items = [item for item in ratings.items if item["item_id"] in known.union(cold)]
    for kind, rows in (("items", items), ("events", events)):
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sent = told(run, "import", str(file), "--kind", kind)
        assert (sent["rows"], sent["sent"], sent["refused"]) == (len(rows), len(rows), 0)
    report = told(run, "ingest")
    assert (report["rows"]["events"], report["rows"]["items"], report["dead_letters"]) == (EVENTS, len(items), {})
    again = told(run, "ingest")
    assert not any(again["rows"].values()), "a second ingest brings nothing"
    stats = {table["table"]: table["rows"] for table in told(run, "lake", "stats")["tables"]}
    assert stats["events"] == EVENTS
    assert told(run, "dlq", "list")["total"] == 0
    return items


def _a_sweep_becomes_an_endpoint(run: Run, file: Path) -> str:
    """Nothing is live before the promotion; then all three surfaces answer from this one bundle."""
    bundle = learned(run, file, SWEEP)
    assert live(run) == {None}
    assert ask(run, "GET", "/readyz")[0] == 503
    promotion = promoted(run, f"/v1/bundles/{bundle}/promote", {})
    assert promotion["state"] == "live", promotion
    assert promotion["replicas"]["loaded"] == promotion["replicas"]["total"] >= 4  # two gateways, both stages
    assert ask(run, "GET", "/readyz")[0] == 200
    assert live(run) == {bundle}
    popular = recommended(run, surface="trending", k=5)
    assert len(popular) == len(recommended(run, surface="home", user_id="73", k=5)) == 5
    related = recommended(run, surface="related", items=popular[:1], k=5)
    assert len(related) == 5
    assert popular[0] not in related
    status, problem = ask(run, "POST", "/v1/recommend", {"surface": "related", "k": 5})
    assert (status, problem["errors"][0]["field"]) == (422, "items")
    return bundle


def _answers_are_fresh(run: Run) -> None:
    """What is consumed is gone at once; one event makes a stranger known, and a login brings the session along."""
    for _ in range(3):
        best = recommended(run, user_id="73")[0]
        clicked(run, best, user_id="73")
        assert best not in recommended(run, user_id="73", k=100)
    unknown = recommended(run, user_id="newcomer")
    assert unknown == recommended(run), "a stranger gets what anybody gets"
    clicked(run, unknown[0], user_id="newcomer")
    assert recommended(run, user_id="newcomer", k=9) != unknown[1:], "not only the consumed one left"
    seen = recommended(run, session_id="s1", k=3)
    for item in seen:
        clicked(run, item, session_id="s1")
    in_session = recommended(run, session_id="s1")
    assert not set(seen) & set(in_session)
    assert ask(run, "POST", "/v1/users/member/merge", {"session_id": "s1"})[0] == 202
    status, history = ask(run, "GET", "/v1/users/member/history")
    assert (status, [item["item_id"] for item in history["items"]]) == (200, seen)
    assert recommended(run, user_id="member") == in_session
    assert ask(run, "POST", "/v1/users/somebody/merge", {"session_id": "s1"})[0] == 409


def _items_come_and_go(run: Run, items: list[Json]) -> None:
    """A new item is found by its content before any event names it; a withdrawn one is gone when DELETE returns."""
    like = next(item for item in items if len(item["genres"]) > 2 and "year" in item and "title" in item)
    columns = {name: like[name] for name in ("title", "genres", "year")}
    assert ask(run, "PUT", "/v1/items/brand-new", columns)[0] == 201
    assert "brand-new" in recommended(run, surface="related", items=[like["item_id"]], k=50)
    assert ask(run, "DELETE", "/v1/items/brand-new")[0] == 204
    assert "brand-new" not in recommended(run, surface="related", items=[like["item_id"]], k=50)
    best = recommended(run, surface="trending")[0]
    assert ask(run, "DELETE", f"/v1/items/{best}")[0] == 204
    for surface in ("trending", "home"):
        assert all(best not in recommended(run, surface=surface, k=500) for _ in range(4))  # whichever gateway
    assert ask(run, "GET", f"/v1/items/{best}")[1]["available"] is False


def _a_file_goes_straight_into_the_lake(run: Run, file: Path) -> None:
    """What happened earlier stands in its place of a running system's histories once the state is rebuilt."""
    before = [item["item_id"] for item in ask(run, "GET", "/v1/users/member/history")[1]["items"]]
    older = recommended(run, surface="trending", k=2)
    rows = [
        {"user_id": "member", "item_id": item, "event_time": f"2016-01-0{day}T00:00:00Z"}
        for day, item in enumerate(older, 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = told(run, "import", str(file), "--to", "lake")
    assert (report["written"], report["duplicates"], report["refused"]) == (2, 0, 0)
    assert report["rebuild"]["events"] == EVENTS + 2
    assert told(run, "import", str(file), "--to", "lake", "--dry-run")["sent"] == 2
    until = time.monotonic() + 30
    while True:
        status, history = ask(run, "GET", "/v1/users/member/history")
        assert status == 200, "nobody is kept waiting meanwhile"
        recommended(run, user_id="member")
        if (found := [item["item_id"] for item in history["items"]]) == [*older, *before]:
            break
        assert found == before
        assert time.monotonic() < until
    clicked(run, before[0], user_id="member")
    stats = {table["table"]: table for table in told(run, "lake", "stats")["tables"]}
    assert stats["events"]["rows"] == EVENTS + 2
    assert stats["events"]["offsets"]["import"] == {"-1": 2}


def _a_worse_bundle_is_refused_and_can_be_taken_back(run: Run, file: Path, first: str) -> None:
    worse = learned(run, file, WORSE)
    status, problem = ask(run, "POST", f"/v1/bundles/{worse}/promote", {})
    assert status == 409, problem
    assert problem["figures"]["candidate"] < problem["figures"]["champion"]
    refused = ask(run, "GET", f"/v1/promotions/{problem['figures']['promotion']}")[1]
    assert refused["state"] == "refused"
    assert live(run) == {first}
    assert promoted(run, f"/v1/bundles/{worse}/promote", {"force": True})["state"] == "live"
    assert live(run) == {worse}
    for surface in ("home", "related", "trending"):
        assert promoted(run, f"/v1/surfaces/{surface}/rollback", {})["state"] == "live"
    assert live(run) == {first}


def _it_says_what_it_is_and_leaves_nothing(run: Run) -> None:
    status = told(run, "status")
    assert (status["state"], status["endpoint"], status["kafka"]) == ("up", run.endpoint, run.kafka)
    assert {one["surface"] for one in status["surfaces"]} == {"home", "related", "trending"}
    assert {row["role"] for row in status["processes"]} == {
        "proxy",
        "gateway",
        "retriever",
        "ranker",
        "state_writer",
        "controller",
    }  # and no broker: it is not ours
    assert "state_messages" in status["lag"]
    assert manta(run.home, "down").returncode == 0
    assert not marked(run.session)
    assert not run.session.exists()
    assert not listens(int(run.endpoint.rsplit(":", 1)[1]))
    assert told(run, "status")["state"] == "down"
