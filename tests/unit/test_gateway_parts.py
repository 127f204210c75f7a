"""The parts of a gateway replica that need neither Ray nor a broker: bundles, impressions, positions, writes."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow as pa
import pytest

from app.api.problems import Problem
from app.chain.request import Answer, Reason, Request, Scored
from app.errors import BrokerUnavailable, BundleError, Conflict, NotFound, StateUnavailable
from app.events.schema import EVENTS, ITEMS, Impression, read_columns
from app.own_folders import hold
from app.settings import Settings
from app.state.memory import MemoryState
from app.state.room import Shortage
from deployments.bundles import BundleStore
from deployments.column_kinds import kinds_of
from deployments.freshness import Follower
from deployments.gateway import Gateway
from deployments.impressions import Impressions
from deployments.nodes import UNKNOWN, OtherNodes
from deployments.positions import NO_ANSWER, Others, Positions
from deployments.rollout import Orders, Report
from deployments.writes import Writes


class Shelf:
    """A store whose loading can be held up or made to fail; what it was told to flip to and dropped is kept."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.broken: set[str] = set()
        self.flips: list[dict[str, str]] = []
        self.dropped: list[str] = []
        self.held: set[str] = set()
        self.store: BundleStore[str] = BundleStore(
            "gateway",
            self.load,
            flip=lambda live: self.flips.append(dict(live)),
            holds=lambda: self.held,
            drop=self.dropped.append,
        )

    def load(self, bundle: str, _: Path) -> str:
        self.go.wait(5)
        if bundle in self.broken:
            raise BundleError("a bit is flipped")
        return bundle.upper()


async def test_a_surface_keeps_its_bundle_until_the_next_is_loaded() -> None:
    shelf = Shelf()
    store = shelf.store
    store.obey(Orders("1", {"home": "a"}, {"a": "/a"}))
    await store.settled()
    assert (store.live, store.loaded) == ({"home": "a"}, {"a": "A"})
    shelf.go.clear()
    store.obey(Orders("2", {"home": "b"}, {"b": "/b"}))
    await asyncio.sleep(0.02)
    assert store.live == {"home": "a"}
    assert shelf.dropped == []
    shelf.held = {"a"}
    shelf.go.set()
    await store.settled()
    assert store.live == {"home": "b"}
    assert store.report().holds == {"a"}
    assert set(store.loaded) == {"a", "b"}  # a request in flight still names it
    shelf.held = set()
    store.obey(store.orders)
    assert (set(store.loaded), shelf.dropped) == ({"b"}, ["A"])
    assert shelf.flips == [{"home": "a"}, {"home": "b"}]


async def test_a_bundle_that_cannot_be_loaded_is_reported_and_forgotten_with_its_order() -> None:
    shelf = Shelf()
    shelf.broken = {"b"}
    shelf.store.obey(Orders("1", {}, {"b": "/b"}))
    await shelf.store.settled()
    assert shelf.store.report().failed == {"b": "a bit is flipped"}
    shelf.store.obey(Orders("2", {}, {}))
    assert shelf.store.report().failed == {}


async def test_following_survives_a_coordinator_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.bundles.RETRY_S", 0.01)
    shelf, asked = Shelf(), []

    async def exchange(report: Report, version: str | None) -> Orders:
        asked.append((version, report))
        if len(asked) in (1, 3):
            raise ConnectionError("restarting")
        await asyncio.sleep(0.01)
        return Orders("1", {"home": "a"}, {"a": "/a"})

    following = asyncio.create_task(shelf.store.follow(exchange))
    await asyncio.wait_for(shelf.store.joined(), 1)
    await shelf.store.settled()
    await asyncio.sleep(0.1)
    following.cancel()
    assert shelf.store.live == {"home": "a"}
    assert any(report.loaded == {"a"} for _, report in asked)


class Topic:
    """Takes messages like a broker, or not."""

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.dropped = 0
        self.sent: list[tuple[str, bytes, bytes | None]] = []
        self.down = False
        self.optional_in_flight = 0

    def close(self) -> None:
        """Nothing is buffered."""

    def try_send(self, topic: str, key: bytes, value: bytes | None) -> bool:
        if len(self.sent) >= self.room:
            self.dropped += 1
            return False
        self.sent.append((topic, key, value))
        return True

    async def send(self, topic: str, messages: Sequence[tuple[bytes, bytes | None]]) -> dict[int, int]:
        if self.down:
            raise BrokerUnavailable("away")
        start = len(self.sent)
        self.sent.extend((topic, key, value) for key, value in messages)
        return {0: start + len(messages) - 1} if messages else {}


ANSWER = Answer(
    "r1",
    "home",
    "champion",
    "b1",
    "popular",
    Reason("rank", "timeout"),
    (Scored("7", 0.5, None, ["ease"]),),
    {"total": 1.0},
)


async def test_impressions_are_bounded_counted_and_of_the_schema() -> None:
    topic = Topic(room=2)
    impressions = Impressions(topic, 3)
    for _ in range(5):
        impressions.log(Request(user_id="u", context={"device": "tv"}), ANSWER, 1_700_000_000_000_000)
    assert topic.sent == []  # behind the answer
    await asyncio.sleep(0.1)
    assert (impressions.logged, impressions.dropped, topic.dropped) == (2, 2, 1)
    _, key, value = topic.sent[0]
    assert value is not None
    read = Impression.model_validate_json(value)
    assert (read.key, read.request_id, read.items[0].position, read.degraded) == (key, "r1", 1, "popular")
    assert read.items[0].sources == ["ease"]


async def test_a_share_of_the_answers_is_logged_the_same_ones_everywhere() -> None:
    chosen = []
    for share in (0.0, 0.25, 0.25, 1.0):
        topic = Topic(room=1000)
        impressions = Impressions(topic, 1000, share)
        for number in range(1000):
            impressions.log(Request(user_id="u"), replace(ANSWER, request_id=f"{number:x}"), 0)
        impressions.close(5.0)
        chosen.append([Impression.model_validate_json(value or b"").request_id for _, _, value in topic.sent])
        assert impressions.dropped == 0
    assert [len(one) for one in chosen[::3]] == [0, 1000]
    assert chosen[1] == chosen[2]
    assert 150 < len(chosen[1]) < 350


async def test_impressions_that_wait_at_the_end_are_sent_or_counted() -> None:
    topic = Topic(room=400)
    impressions = Impressions(topic, 1000)
    impressions.log(Request(context={"huge": 2**70}), ANSWER, 0)  # more than JSON's integers hold
    for _ in range(600):
        impressions.log(Request(user_id="u"), ANSWER, 1_700_000_000_000_000)
    impressions.close(5.0)
    assert (impressions.logged, impressions.dropped, topic.dropped) == (400, 1, 200)
    impressions.log(Request(user_id="u"), ANSWER, 0)
    assert impressions.dropped == 2
    late = Impressions(topic, 1000)
    for _ in range(5):
        late.log(Request(user_id="u"), ANSWER, 0)
    late.close(0.0)
    assert (late.logged, late.dropped) == (0, 5)
    await asyncio.sleep(0.15)
    assert len(topic.sent) == 400


async def test_a_replica_that_closes_counts_the_impressions_that_it_could_not_send(tmp_path: Path) -> None:
    topic, counted = Topic(room=1), Counting()
    impressions = Impressions(topic, 10)
    for _ in range(3):
        impressions.log(Request(user_id="u"), ANSWER, 0)
    topic.optional_in_flight = 1  # and the broker never said that it has this one
    replica = SimpleNamespace(
        _tasks=[],
        _answering=SimpleNamespace(impressions=impressions),
        _producer=topic,
        _metrics=counted,
        _state=topic,
        _live_figures=topic,
        _cache_folder=tmp_path / "cache",
        _cache_mark=hold(tmp_path / "cache"),
    )
    replica._close = lambda: Gateway._close(replica)  # type: ignore[arg-type]
    replica._dropped = lambda: Gateway._dropped(replica)  # type: ignore[arg-type]
    await Gateway.__del__(replica)  # type: ignore[arg-type]
    assert len(topic.sent) == 1
    assert counted.counts == {"dropped": 3}


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_writer_that_has_no_room_is_told_in_one_line_and_takes_no_replica_out_of_service(fresh: bool) -> None:
    async def catch_up() -> None:
        if not fresh:
            raise StateUnavailable("nothing was published yet")

    replica = SimpleNamespace(
        settings=Settings(),
        _fresh=catch_up,
        _owners=None,
        _state=SimpleNamespace(stopped=lambda: None, shortage=lambda: Shortage(7_000, 200_000_000)),
        _answering=SimpleNamespace(lanes={"home": None}),
        _store=SimpleNamespace(live={"home": "b1"}),
    )
    ready, stages = await Gateway.readiness(replica)  # type: ignore[arg-type]
    assert ready is fresh
    assert stages["state"]["ready"] is fresh
    assert "found 7,000 bytes free, wanted 200,000,000 (state.min_free_bytes)" in stages["state"]["writer"]


class Applying:
    """A position that follows a topic after some looks."""

    def __init__(self, after: int = 0) -> None:
        self.after, self.looks = after, 0

    def applied(self, _: str, __: int) -> int:
        self.looks += 1
        return 10**6 if self.looks > self.after else 0


async def test_waiting_for_this_node_and_for_others() -> None:
    assert await Positions(Applying(3)).passed(EVENTS, {0: 5, 1: 7}, 1.0) == []
    assert await Positions(Applying(10**6)).passed(EVENTS, {0: 5}, 0.02) == ["the state writer of this node"]
    ends: list[int] = [5, 6]

    async def others() -> Mapping[str, Mapping[str, Mapping[int, int]]]:
        return {"n2": {EVENTS: {0: ends.pop(0) if len(ends) > 1 else ends[0]}}}

    assert await Positions(Applying(), others).passed(EVENTS, {0: 5}, 1.0) == []

    async def never() -> Mapping[str, Mapping[str, Mapping[int, int]]]:
        return {"n2": {}}

    assert await Positions(Applying(), never).passed(EVENTS, {0: 5}, 0.1) == ["the state writer of node n2"]


async def nobody() -> Mapping[str, Mapping[str, Mapping[int, int]]]:
    return {}


async def hanging() -> Mapping[str, Mapping[str, Mapping[int, int]]]:
    await asyncio.sleep(60)
    return {}


async def test_others_that_do_not_answer_are_not_waited_for_longer_than_the_rest() -> None:
    async with asyncio.timeout(1.0):
        assert await Positions(Applying(), hanging).passed(EVENTS, {0: 5}, 0.1) == [NO_ANSWER]
    calls = 0

    async def answers_once() -> Mapping[str, Mapping[str, Mapping[int, int]]]:
        nonlocal calls
        calls += 1
        return {"n2": {}} if calls == 1 else await hanging()

    async with asyncio.timeout(1.0):
        found = await Positions(Applying(), answers_once).passed(EVENTS, {0: 5}, 0.2)
    assert found == ["the state writer of node n2"]


async def test_the_supervisor_of_other_nodes_is_asked_once_for_all_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.nodes.ASK_S", 0.1)
    asked = 0
    hold = asyncio.Event()

    async def status() -> Sequence[Mapping[str, Any]]:
        nonlocal asked
        asked += 1
        await hold.wait()
        return [{"node": "n2", "offsets": {EVENTS: {0: 6}}}, {"node": "here", "offsets": {}}]

    nodes = OtherNodes(lambda: ["n2", "n3"], status)
    assert await asyncio.gather(*(nodes.applied() for _ in range(3))) == [{"n2": {}, "n3": {}}] * 3
    assert asked == 1
    hold.set()
    assert await nodes.applied() == {"n2": {EVENTS: {0: 6}}}
    alone = OtherNodes(list, status)
    assert [await alone.applied() for _ in range(3)] == [{}] * 3
    assert asked == 2
    stuck = threading.Event()
    unknown = OtherNodes(lambda: ["n2"] if stuck.wait(5) else [], status)
    assert list(await unknown.applied()) == [UNKNOWN]
    stuck.set()


class Counting:
    """Stands for the metrics."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def events(self, outcome: str, count: int) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + count

    def dropped(self, impressions: int) -> None:
        self.counts["dropped"] = impressions


KINDS = kinds_of(
    pa.table(
        {
            "title": ["Old", None],
            "year": [None, 1999.0],
            "picture": pa.array([[0.5, 1.0, 0.0], None], pa.list_(pa.float32())),
            "sizes": [[1, 2], [3]],
            "tags": [[], ["a"]],
            "seen": [True, None],
            "never": pa.nulls(2),
        }
    )
)


class Desk:
    """`Writes` over a topic in memory and a state in memory."""

    def __init__(self, applied: Applying | None = None, others: Others = nobody) -> None:
        self.topic, self.state, self.metrics = Topic(), MemoryState(Settings()), Counting()
        follower = Follower(self.state, timeout_s=1.0, moved=lambda: None)
        self.writes = Writes(
            Settings(),
            self.state,
            follower,
            self.topic,
            Positions(applied or Applying(), others),
            self.metrics,  # type: ignore[arg-type]
            {"old": {"title": "Old"}}.get,
            lambda: KINDS,
        )


async def test_events_are_checked_one_by_one_and_sent_together() -> None:
    desk = Desk()
    good: dict[str, Any] = {"user_id": "u", "item_id": "1", "event_type": "click"}
    future = {**good, "event_time": "2999-01-01T00:00:00Z"}
    told = await desk.writes.post_events([good, {}, 7, future, {"session_id": "s", **good, "x": 1}], True)
    assert (told["accepted"], told["applied"]) == (2, True)
    assert [one["index"] for one in told["rejected"]] == [1, 2, 3]
    assert told["rejected"][2]["code"] == "future"
    assert [key for _, key, _ in desk.topic.sent] == [b"u", b"u"]
    sent = orjson.loads(desk.topic.sent[1][2] or b"")
    assert sent["x"] == 1
    assert {"event_id", "event_time", "schema_version"} <= set(sent)
    assert (await desk.writes.post_events([good], False))["applied"] is None
    slow = Desk(Applying(10**9))
    assert (await slow.writes.post_events([good], True))["applied"] is False
    desk.topic.down = True
    with pytest.raises(BrokerUnavailable):
        await desk.writes.post_events([good], False)
    assert desk.metrics.counts == {"rejected": 3, "accepted": 3, "unavailable": 1}


async def test_items_are_new_changed_withdrawn_or_unknown() -> None:
    desk = Desk()
    writes = desk.writes
    assert await writes.put_item("n", {"title": "N", "year": None}) == (
        True,
        {"item_id": "n", "available": True, "title": "N"},
    )
    assert (await writes.put_item("old", {"title": "Newer"}))[0] is False
    for wrong in ({"title": 5}, {"year": "1999"}, {"nested": {"a": 1}}):
        with pytest.raises(Problem) as error:
            await writes.put_item("n", wrong)
        assert (error.value.status, error.value.errors[0].field) == (422, next(iter(wrong)))
    many = await writes.post_items(
        [{"item_id": "a", "title": "A"}, {"title": "no id"}, {"item_id": "b", "title": 1}, 3]
    )
    assert (many["accepted"], [one["index"] for one in many["rejected"]]) == (1, [1, 2, 3])
    assert await writes.get_item("old") == {"item_id": "old", "available": True, "title": "Old"}
    await writes.delete_item("old")
    topic, key, value = desk.topic.sent[-1]
    assert (topic, key, value) == (ITEMS, b"old", None)
    assert read_columns(desk.topic.sent[0][1], desk.topic.sent[0][2] or b"", "item_id")[1] == {
        "title": "N",
        "year": None,
    }
    with pytest.raises(NotFound):
        await writes.delete_item("none")


async def test_a_vector_of_another_size_is_refused_with_both_sizes() -> None:
    assert KINDS == {
        "title": "text",
        "year": "a number",
        "picture": "a list of 3 numbers",
        "sizes": "a list of numbers",
        "tags": "a list of text",
        "seen": "a truth value",
    }
    desk = Desk()
    fits: list[dict[str, Any]] = [{"picture": [1, 0.5, 0]}, {"picture": None}, {"picture": []}, {"sizes": [1, 2, 3]}]
    refused: dict[str, dict[str, Any]] = {
        "picture: found a list of 2 numbers, wanted a list of 3 numbers as in the catalogue": {"picture": [1, 2]},
        "picture: found a list of text, wanted a list of 3 numbers as in the catalogue": {"picture": ["a", "b", "c"]},
        "picture: found a list with a number and null, wanted a list of text or of numbers": {"picture": [1, None, 2]},
        "picture: found nan, wanted a finite number": {"picture": [1.0, float("nan"), 2.0]},
        "sizes: found text, wanted a list of numbers as in the catalogue": {"sizes": "12"},
    }
    told = await desk.writes.post_items([{"item_id": "x", **one} for one in (*fits, *refused.values())])
    assert told["accepted"] == len(fits)
    assert [one["message"] for one in told["rejected"]] == list(refused)


async def test_a_withdrawal_that_is_not_applied_everywhere_says_who_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.writes.EVERYWHERE_WAIT_S", 0.05)
    desk = Desk(Applying(10**9))
    with pytest.raises(Problem) as late:
        await desk.writes.delete_item("old")
    assert (late.value.status, late.value.more) == (503, {"late": ["the state writer of this node"]})


async def test_writes_answer_in_time_where_the_supervisor_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.writes.EVERYWHERE_WAIT_S", 0.05)
    monkeypatch.setattr("deployments.writes.EVENTS_WAIT_S", 0.05)
    desk = Desk(others=hanging)
    async with asyncio.timeout(2.0):
        event = {"user_id": "u", "item_id": "1", "event_type": "click"}
        assert (await desk.writes.post_events([event], True))["applied"] is False
        for write in (desk.writes.delete_item("old"), desk.writes.put_item("old", {"title": "Newer"})):
            with pytest.raises(Problem) as late:
                await write
            assert (late.value.status, late.value.more) == (503, {"late": [NO_ANSWER]})


async def test_a_session_merges_once(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    assert await desk.writes.merge("u", "s") == {"user_id": "u", "session_id": "s"}
    assert {key for _, key, _ in desk.topic.sent} == {b"u", b"s"}
    monkeypatch.setattr(desk.state, "merged_into", lambda _: "u")
    await desk.writes.merge("u", "s")
    assert len(desk.topic.sent) == 2
    with pytest.raises(Conflict):
        await desk.writes.merge("v", "s")
    assert await desk.writes.history("nobody") == {"user_id": "nobody", "items": [], "version": 0}
    with pytest.raises(NotFound):
        await desk.writes.get_user("nobody")


async def test_of_two_merges_on_their_way_at_once_one_is_told_that_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    owners = iter([None, "u"])  # nobody when it is asked, another user once its own event is applied
    monkeypatch.setattr(desk.state, "merged_into", lambda _: next(owners))
    with pytest.raises(Conflict):
        await desk.writes.merge("v", "s")
    assert len(desk.topic.sent) == 2
