"""The same requests get the same answers whether the state is a node's or sharded, near or far."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from app.chain.request import Reason
from app.degrade import FAILURES_TO_OPEN
from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.recommend import Answer, Request
from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.reader import StateReader
from app.state.sharded import ShardedState
from app.state.shares import shard_of
from deployments.answering import Answering
from deployments.freshness import Follower
from deployments.owners import ShardOwners
from deployments.positions import ShardPositions
from deployments.writes import Writes
from tests.contract.test_state_readers import Stores, event, events, sharded
from tests.unit.chain_world import World

USERS = [f"u{number}" for number in range(8)]
MANY = [
    *(Request(user_id=user, k=5) for user in USERS),
    Request(session_id="s1", k=5),
    Request(history=["i3"], k=5),
    Request(k=5),
]


class Nothing:
    """Stands for impressions and metrics."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None


def log() -> Batch:
    """Clicks of users and of a visitor who logs in."""
    found: list[StateEvent] = []
    for number, user in enumerate(USERS):
        found += [event(10 * number + n, f"i{4 * n + number}", user=user) for n in range(4)]
    found += [event(100 + n, f"i{2 * n}", user=None, session="s1", partition=1) for n in range(3)]
    login = {"user": "u3", "session": "s1", "kind": "merge", "time": 200}
    found += [event(110, None, partition=1, **login), event(111, None, **login)]  # type: ignore[arg-type]
    return events(*found)


async def answers(
    state: StateReader, tmp_path: Path, requests: Sequence[Request], deliver: Callable[..., None] = lambda *_: None
) -> list[Answer]:
    world, nothing = World(), cast(Any, Nothing())
    follower = Follower(state, timeout_s=1.0, moved=lambda: None)
    answering = Answering(
        Settings(), state, follower, folder=tmp_path, remote=None, impressions=nothing, metrics=nothing
    )
    outcomes = await answering._work(replace(world.chain, state=state), requests, deliver)
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    return cast(list[Answer], outcomes)


@pytest.mark.parametrize("here", [[0, 1, 2], [1], []])
async def test_the_answers_are_those_of_a_node(tmp_path: Path, here: list[int]) -> None:
    whole = World().state
    whole.apply(log())
    wanted = await answers(whole, tmp_path, MANY)
    with sharded(Settings(), tmp_path, here, synchronous=False) as (state, apply):
        apply(log())
        for number in {0, 1, 2} - set(here):
            await state.hear(number, 5.0)
        found = await answers(state, tmp_path, MANY)
        assert [[(one.item_id, one.score) for one in answer.items] for answer in found] == [
            [(one.item_id, one.score) for one in answer.items] for answer in wanted
        ]
        assert not any(answer.degraded for answer in found)
        owners = state.owners
        assert isinstance(owners, Stores)
        owners.asked.clear()
        await answers(state, tmp_path, MANY)
        first = [number for number, _ in owners.asked]
        assert len(first) <= 2 * (3 - len(here))  # a shard once, and once more for those who have logged in


async def test_an_owner_that_is_down_degrades_its_users_alone(tmp_path: Path) -> None:
    with sharded(Settings(), tmp_path, [1], synchronous=False) as (state, apply):
        apply(log())
        assert isinstance(state.owners, Stores)
        state.owners.down = {0}
        found = await answers(state, tmp_path, MANY)
        lost = {shard_of(user, 3) == 0 or (user == "u3" and shard_of("s1", 3) == 0) for user in USERS}
        assert lost == {True, False}
        for user, answer in zip(USERS, found, strict=False):
            there = shard_of(user, 3) != 0 and (user != "u3" or shard_of("s1", 3) != 0)
            assert (answer.degraded is None) is there, user
            if answer.degraded_reason is not None:
                assert (answer.degraded_reason.stage, answer.degraded_reason.cause) == ("state", "error")
            assert answer.items


async def test_an_owner_that_says_nothing_costs_its_users_half_of_their_deadline_and_nobody_else(
    tmp_path: Path,
) -> None:
    with sharded(Settings(), tmp_path, [1], synchronous=False) as (state, apply):
        apply(log())
        assert isinstance(state.owners, Stores)
        state.owners.hung = {0}
        by_shard = {shard_of(user, 3): user for user in USERS if user != "u3"}
        requests = [
            Request(user_id=by_shard[0], timeout_ms=1500),
            Request(user_id=by_shard[0], timeout_ms=100),
            Request(user_id=by_shard[1], timeout_ms=100),
            Request(history=["i3"], timeout_ms=1),
        ]
        delivered: list[int] = []
        found = await answers(state, tmp_path, requests, lambda place, _: delivered.append(place))
        assert delivered == [2, 3, 1, 0]
        assert [answer.degraded is not None for answer in found] == [True, True, False, False]
        causes = [(answer.degraded_reason.stage, answer.degraded_reason.cause) for answer in found[:2]]  # type: ignore
        assert causes == [("state", "timeout")] * 2
        (other,) = await answers(state, tmp_path, [Request(user_id=by_shard[2], timeout_ms=20_000)])
        assert other.degraded is None
        said = [(await answers(state, tmp_path, requests[1:2]))[0].degraded_reason for _ in range(FAILURES_TO_OPEN)]
        assert Reason("state", "circuit_open") in said  # nobody is waited for
        state.owners.hung = set()
        while True:
            try:
                await state.hear(0, 5.0)
            except StateUnavailable:
                await asyncio.sleep(0.05)
                continue
            break
        (back,) = await answers(state, tmp_path, [Request(user_id=by_shard[0], timeout_ms=20_000)])
        assert back.degraded is None


async def test_events_are_waited_for_where_their_shards_are(tmp_path: Path) -> None:
    with sharded(Settings(), tmp_path, [1], synchronous=False) as (state, apply):
        apply(log())
        positions = ShardPositions(state)
        assert await positions.passed(EVENTS, {0: 111, 1: 110}, 1.0) == []
        assert await positions.passed(EVENTS, {0: 112, 1: 110}, 0.1) == ["the writer of shard 0"]
        assert await positions.passed(EVENTS, {0: 111, 1: 111}, 0.1) == ["the writer of shard 1"]
        assert isinstance(state.owners, Stores)
        state.owners.down = {0}
        assert await positions.passed(EVENTS, {0: 111, 1: 110}, 0.1) == ["the writer of shard 0"]


async def test_histories_and_merges_are_read_wherever_they_lie(tmp_path: Path) -> None:
    with sharded(Settings(), tmp_path, [], synchronous=False) as (state, apply):
        apply(log())
        follower = Follower(state, timeout_s=1.0, moved=lambda: None)
        nothing = cast(Any, Nothing())
        writes = Writes(Settings(), state, follower, nothing, ShardPositions(state), nothing, lambda _: None, dict)
        found = await writes.history("u3")
        assert len(found["items"]) == 7
        assert (await writes.get_user("u3"))["user_id"] == "u3"
        assert await writes.merge("u3", "s1") == {"user_id": "u3", "session_id": "s1"}
        assert isinstance(state, ShardedState)


async def test_whatever_ray_says_of_an_owner_is_that_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = ShardOwners()
    with pytest.raises(StateUnavailable, match="shard 0: found no owner"):
        await owners.look(0, [])

    async def broken(_: str) -> None:
        raise RuntimeError("the connection is gone")

    monkeypatch.setattr(owners, "_owners", {0: "0123456789"})
    monkeypatch.setattr(owners, "_writer", broken)
    with pytest.raises(StateUnavailable, match=r"shard 0: its owner, node 01234567, does not answer \(RuntimeError\)"):
        await owners.look(0, [])
