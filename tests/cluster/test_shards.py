"""Shards on a cluster of two nodes: one joins and takes its share, dies, and its shards are read elsewhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import orjson
import pytest
import ray

from app.errors import StateUnavailable
from app.events.producer import EventProducer
from app.events.schema import EVENTS
from app.events.topics import ensure_topics
from app.settings import Settings
from app.state.sharded import ShardedState
from app.state.shares import shard_of
from deployments.cluster import attach
from deployments.node_actors import SUPERVISOR
from deployments.owners import ShardOwners
from deployments.positions import ShardPositions
from deployments.run import Run
from deployments.state_writer import ensure_state_writers, state_lag, state_status, stop_state_writers
from tests.cluster.another_node import AnotherNode

T = TypeVar("T")
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.kafka, pytest.mark.faults]
SHARDS = 2


async def until(ask: Callable[[], Awaitable[T]], seconds: float = 60.0) -> T:
    """What `ask` says once it is true; StateUnavailable counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := await ask():
                return found
        except StateUnavailable as error:
            found = error  # type: ignore[assignment]
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        await asyncio.sleep(0.05)


@pytest.fixture
def system(own_kafka: tuple[str, Path], short_home: Path) -> Iterator[tuple[Settings, Run]]:
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": own_kafka[0], "partitions": 2 * SHARDS},
            "ray": {"num_cpus": 2},
            "state": {"placement": "sharded", "shards": SHARDS},
            "stats": {"enabled": False},
        }
    )
    ensure_topics(settings.kafka)
    with attach(settings, short_home, ends=True, say=print) as attached:
        assert attached.run is not None
        yield attached.settings, attached.run
        stop_state_writers()


async def test_a_shard_moves_to_a_node_that_joins_and_back_when_it_dies(system: tuple[Settings, Run]) -> None:
    settings, run = system
    supervisor = ensure_state_writers(settings, run.home)
    owners = ShardOwners()
    state = ShardedState(run.home, "test", settings.state, owners)
    positions, producer = ShardPositions(state), EventProducer(settings.kafka, delivery_timeout_s=20)
    users = [f"u{number}" for number in range(6)]
    assert {shard_of(user, SHARDS) for user in users} == {0, 1}
    here, sent = ray.get_runtime_context().get_node_id(), 0

    async def places() -> list[str]:
        await owners.refresh(state, SHARDS)
        found: dict[int, str] = await supervisor.owners.remote()
        return [found[shard] for shard in sorted(found)]

    async def readable() -> bool:
        await owners.refresh(state, SHARDS)
        state.catch_up()
        await owners.refresh(state, SHARDS)
        return not owners.errors

    async def clicks() -> None:
        """One more of each user, which the next look shows."""
        nonlocal sent
        events = [
            (user.encode(), orjson.dumps({"user_id": user, "item_id": str(sent), "event_type": "click"}))
            for user in users
        ]
        sent += 1
        assert await positions.passed(EVENTS, await producer.send(EVENTS, events), 20.0) == []
        if state.behind():
            state.catch_up()
        found = await state.gather([("user", user) for user in users], 5.0)
        wanted = tuple(str(number) for number in range(sent))
        assert {one.item_ids for one in found.histories([("user", user) for user in users])} == {wanted}

    await until(readable)
    assert await places() == [here, here]
    await clicks()
    (status,) = state_status()
    assert status["shards"].keys() == {0, 1}
    another = AnotherNode(settings, run)
    try:

        async def moved() -> bool:
            return sum(node != here for node in await places()) == 1 and await readable()

        await until(moved, 120.0)
        assert len(state.here) == 1
        await clicks()
    finally:
        another.kill()

    async def back() -> bool:
        return await places() == [here, here] and await readable()

    (lost,) = {0, 1} - state.here
    user = next(user for user in users if shard_of(user, SHARDS) == lost)
    with pytest.raises(StateUnavailable):  # whoever asks the dead is told so, at once
        (await state.gather([("user", user)], 5.0)).histories([("user", user)])
    died = time.monotonic()
    await until(back, 120.0)
    print(f"read elsewhere {time.monotonic() - died:.1f} s after")
    await clicks()
    assert state_lag()[EVENTS] == 0
    assert ray.get_actor(SUPERVISOR, "manta") is not None
    producer.close()
    state.close()
