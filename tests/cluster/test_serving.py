"""One running endpoint: fresh answers, hot swaps under load, dead stages, a dead coordinator, scaling up and down."""

import http.client
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pyarrow as pa
import pytest

from app.events.blocks import read_here
from app.events.decode import TABLES
from app.events.ranges import OffsetRange
from app.events.schema import EVENTS, IMPRESSIONS
from app.events.topics import bounds
from app.ranking.logged import logged_rows
from app.settings import load_settings
from deployments.processes import marked
from deployments.run import Run, read
from deployments.status import processes
from tests.cluster.manta import START_S, free_port, manta
from tests.unit.tiny_bundle import register_tiny

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(2 * START_S)]

SETTINGS = """
surfaces:
  home: {timeout_ms: 3000}
  related: {topology: distributed, timeout_ms: 3000}
serve:
  gateway: {min_replicas: 2, max_replicas: 3, num_cpus: 0.1, target_ongoing_requests: 3,
            upscale_delay_s: 1, downscale_delay_s: 3}
  features_share: 1.0
ray: {num_cpus: 2, object_store_bytes: 80000000}
"""


@pytest.fixture(scope="module")
def up(short_home: Path) -> Iterator[Run]:
    """A system with two registered bundles of disjoint items ("a0" …, "b0" …), `a1` live."""
    file = short_home / "manta.yaml"
    file.write_text(SETTINGS)
    settings = load_settings(file, {})
    for name in ("a1", "b1"):
        register_tiny(settings, short_home, name, prefix=name[0])
    try:
        started = manta(short_home, "up", "--port", str(free_port()), "--settings", str(file))
        assert started.returncode == 0, started.stderr
        run = read(short_home)
        assert run is not None
        promote(run, "a1")
        yield run
    finally:
        manta(short_home, "down")


class Caller:
    """One connection to the endpoint, made anew where the proxy has closed it."""

    def __init__(self, run: Run) -> None:
        self._address = urlsplit(run.endpoint).netloc
        self._connection = http.client.HTTPConnection(self._address, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {} if body is None else {"content-type": "application/json"}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None


def ask(run: Run, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    return Caller(run).ask(method, path, body)


def until(done: Callable[[], bool], seconds: float, pause_s: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)


def promote(run: Run, bundle: str, force: bool = True) -> dict[str, Any]:
    """Promotes and waits for the end."""
    status, started = ask(run, "POST", f"/v1/bundles/{bundle}/promote", {"force": force})
    assert status == 202, started
    return ended(run, started["promotion"])


def ended(run: Run, promotion: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def over() -> bool:
        status, answer = ask(run, "GET", f"/v1/promotions/{promotion}")
        found.update(answer)
        return status == 200 and answer["state"] != "loading"

    until(over, 60)
    return found


def pids(run: Run, role: str) -> list[int]:
    return [row["pid"] for row in processes(run) if row["role"] == role]


class Load:
    """Clients that ask in turn on some surfaces until they are stopped; keeps what was wrong."""

    def __init__(self, run: Run, surfaces: list[str], clients: int = 4) -> None:
        self.answers: list[dict[str, Any]] = []
        self.wrong: list[Any] = []
        self._run, self._surfaces = run, surfaces
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        caller, count = Caller(self._run), number
        while not self._stop.is_set():
            count += 1
            surface = self._surfaces[count % len(self._surfaces)]
            body = {"surface": surface, "user_id": f"u{count}", "k": 5, "items": None}
            try:
                status, answer = caller.ask("POST", "/v1/recommend", body)
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                caller = Caller(self._run)
                continue
            if status != 200 or {item["item_id"][0] for item in answer["items"]} != {answer["bundle"][0]}:
                self.wrong.append((status, answer))
            else:
                self.answers.append(answer)


def test_the_next_answer_of_any_replica_knows(up: Run) -> None:
    """Events with `wait=applied`, and withdrawn items, on every replica at once (each call is another connection)."""
    for number in range(6):
        user, item = f"fresh-{number}", f"a{number}"
        event = {"user_id": user, "item_id": item, "event_type": "click"}
        status, told = ask(up, "POST", "/v1/events?wait=applied", event)
        assert (status, told["applied"]) == (202, True)
        shown = [ask(up, "POST", "/v1/recommend", {"user_id": user, "k": 80})[1] for _ in range(4)]
        assert all(item not in {one["item_id"] for one in answer["items"]} for answer in shown)
        assert ask(up, "DELETE", f"/v1/items/a{40 + number}")[0] == 204
        shown = [ask(up, "POST", "/v1/recommend", {"k": 80})[1] for _ in range(4)]
        assert all(f"a{40 + number}" not in {one["item_id"] for one in answer["items"]} for answer in shown)
    assert ask(up, "PUT", "/v1/items/a-new", {"title": "New", "genres": ["War"], "year": 2001})[0] == 201
    answer = ask(up, "POST", "/v1/recommend", {"candidates": ["a-new"], "k": 1})[1]
    assert [item["item_id"] for item in answer["items"]] == ["a-new"]
    assert ask(up, "DELETE", "/v1/items/a-new")[0] == 204


def test_both_topologies_give_the_same_answers(up: Run) -> None:
    for history in (["a1", "a2"], ["a7"], []):
        answers = [
            ask(up, "POST", "/v1/recommend", {"surface": surface, "history": history, "k": 10})[1]
            for surface in ("home", "related")
        ]
        assert [answer["degraded"] for answer in answers] == [None, None]
        ids = [[item["item_id"] for item in answer["items"]] for answer in answers]
        assert ids[0] == ids[1]


def test_hot_swaps_under_load(up: Run) -> None:
    """No failed request, no answer in which two bundles are mixed, on both topologies."""
    with Load(up, ["home", "related"]) as load:
        for bundle in ("b1", "a1", "b1"):
            time.sleep(1)
            live = promote(up, bundle)
            assert (live["state"], live["replicas"]["loaded"]) == ("live", live["replicas"]["total"])
            assert live["replicas"]["total"] >= 4  # two gateways, retriever, ranker
        status, started = ask(up, "POST", "/v1/surfaces/home/rollback")
        assert status == 202
        assert ended(up, started["promotion"])["state"] == "live"
        time.sleep(0.5)
    assert load.wrong == []
    assert {answer["bundle"] for answer in load.answers} == {"a1", "b1"}
    assert load.answers[-1]["bundle"] == ("a1" if load.answers[-1]["surface"] == "home" else "b1")
    promote(up, "a1")


def test_a_promotion_asked_for_twice_is_one_and_the_command_follows_it(up: Run) -> None:
    told = [ask(up, "POST", "/v1/bundles/b1/promote", {"force": True}) for _ in range(2)]
    assert [status for status, _ in told] == [202, 202]
    assert told[1][1]["promotion"] == told[0][1]["promotion"] or told[1][1]["state"] == "live"
    done = ended(up, told[0][1]["promotion"])
    assert (done["state"], done["figures"]["sound"]) == ("live", True)
    back = manta(up.home, "bundles", "promote", "a1", "--force")
    assert back.returncode == 0, back.stderr
    refused = manta(up.home, "bundles", "promote", "b1", "--expected", "b1")
    assert refused.returncode == 1
    assert "found home: a1" in refused.stderr
    with urllib.request.urlopen(up.endpoint + "/metrics", timeout=10) as answer:
        assert 'manta_bundle_live{bundle="a1",surface="home"} 1.0' in answer.read().decode()


def test_a_coordinator_killed_in_a_swap_ends_it_in_one_version(up: Run) -> None:
    status, started = ask(up, "POST", "/v1/bundles/b1/promote", {"force": True})
    assert status == 202
    with Load(up, ["home", "related"], clients=2) as load:
        for pid in coordinators(up):
            os.kill(pid, signal.SIGKILL)
        until(lambda: ask(up, "GET", f"/v1/promotions/{started['promotion']}")[0] == 200, 60, 0.5)
        assert ended(up, started["promotion"])["state"] == "live"
    assert load.wrong == []
    surfaces = ask(up, "GET", "/v1/surfaces")[1]["surfaces"]
    assert {one["bundle"] for one in surfaces} == {"b1"}
    promote(up, "a1")


def coordinators(run: Run) -> list[int]:
    found = [process.pid for process in marked(run.session)]
    return [pid for pid in found if any("SwapCoordinator" in word for word in psutil.Process(pid).cmdline())]


@pytest.mark.faults
def test_dead_stages_degrade_and_come_back(up: Run) -> None:
    victims = [*pids(up, "ranker"), *pids(up, "retriever")]
    assert len(victims) >= 2
    with Load(up, ["related"], clients=2) as load:
        time.sleep(1)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        time.sleep(3)
        until(lambda: load.answers[-1]["degraded"] is None, 60)
    assert load.wrong == []
    degraded = [answer for answer in load.answers if answer["degraded"]]
    assert all(answer["degraded_reason"]["stage"] in ("retrieve", "rank") for answer in degraded)


def test_gateways_scale_up_and_down(up: Run) -> None:
    assert len(pids(up, "gateway")) == 2
    with Load(up, ["home"], clients=24) as load:
        until(lambda: len(pids(up, "gateway")) == 3, 90, 1.0)
    assert load.wrong == []
    with Load(up, ["home"], clients=1) as load:
        until(lambda: len(pids(up, "gateway")) == 2, 90, 1.0)
    assert load.wrong == []  # scaling down loses no request


def test_live_figures_follow_answers_and_clicks(up: Run) -> None:
    """Every answer counts as shown with its sources, a click on it once, and what is clicked trends, on any replica."""

    def clicks() -> list[dict[str, Any]]:
        status, found = ask(up, "GET", "/v1/stats/ctr?surface=related&step=day")
        return [bucket for bucket in found["buckets"] if bucket["clicks"]] if status == 200 else []

    status, answer = ask(up, "POST", "/v1/recommend", {"surface": "related", "user_id": "watched", "k": 5})
    assert (status, answer["degraded"]) == (200, None)
    what = {"request_id": answer["request_id"], "surface": "related", "event_type": "click", "user_id": "watched"}
    shown = [item["item_id"] for item in answer["items"]]
    for item, times in ((shown[0], 3), (shown[1], 2)):
        for _ in range(times):
            assert ask(up, "POST", "/v1/events", {**what, "item_id": item})[0] == 202
    until(lambda: sum(bucket["clicks"] for bucket in clicks()) == 2, 30)
    (bucket,) = clicks()
    assert (bucket["variant"], bucket["bundle"], bucket["conversions"]) == ("champion", answer["bundle"], 0)
    assert bucket["ctr"] == bucket["clicks"] / bucket["impressions"]
    assert bucket["impressions"] >= 5
    assert not bucket["final"]
    _, by_source = ask(up, "GET", "/v1/stats/ctr?surface=related&step=day&by=source")
    assert None not in {row["source"] for row in by_source["buckets"]}

    def trends() -> bool:
        found = [ask(up, "GET", "/v1/stats/trending?surface=related&k=20")[1]["items"] for _ in range(4)]
        places = [[item["item_id"] for item in items if item["count"]] for items in found]
        return all(shown[0] in ids and shown[1] in ids for ids in places)

    until(trends, 15)
    with urlopen(up.endpoint + "/metrics", timeout=10) as metrics:
        assert 'manta_stats_lag_messages{topic="impressions"}' in metrics.read().decode()
    status, problem = ask(up, "GET", "/v1/stats/ctr?surface=nowhere")
    assert (status, problem["status"]) == (404, 404)
    logged = whole(up, IMPRESSIONS), whole(up, EVENTS)
    rows = logged_rows(*logged, objectives={"click": ["click"]}, attribution_us=3_600_000_000)
    place = rows.requests.index(answer["request_id"])
    mine = slice(rows.offsets[place], rows.offsets[place + 1])
    assert rows.labels[mine, 0].tolist() == [1, 1, 0, 0, 0]
    assert rows.features[mine].any(axis=0).any()


def whole(run: Run, topic: str) -> pa.Table:
    """Everything a topic holds, as the lake would."""
    settings = run.settings(load_settings(run.home / "manta.yaml", {}))
    held = bounds(settings.kafka, [topic])[topic]
    ranges = [OffsetRange(topic, partition, held.first[partition], end) for partition, end in held.end.items()]
    return pa.concat_tables([TABLES[topic].empty_table(), *(b.decoded.events for b in read_here(settings, ranges))])
