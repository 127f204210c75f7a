"""Shards on a cluster of two nodes: one joins and takes its share, dies, and its shards are read elsewhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import orjson
import pytest
import ray

from app.erase import Eraser, request
from app.erasure.ledger import ErasureLedger
from app.errors import StateUnavailable
from app.events.blocks import read_here
from app.events.producer import EventProducer
from app.events.schema import EVENTS, ITEMS, columns_message
from app.events.topics import ensure_topics
from app.lake.identities import IDENTITIES
from app.lake.ingest import IngestJob
from app.lake.tables import open_lake
from app.settings import Settings
from app.state.sharded import ShardedState
from app.state.shares import shard_of
from deployments.cluster import attach
from deployments.erasures import NodeStates
from deployments.node_actors import SUPERVISOR
from deployments.nodes import OtherNodes
from deployments.owners import ShardOwners
from deployments.positions import ShardPositions
from deployments.rebuild_state import rebuild_everywhere
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
        found = await state.gather([("user", user) for user in users], 20.0)
        wanted = tuple(str(number) for number in range(sent))
        assert {one.item_ids for one in found.histories([("user", user) for user in users])} == {wanted}

    async def erased() -> None:
        """A user whom the other node has: by the writer that has his shard, and nobody waits for the one that waits."""
        gone = next(name for name in map(str, range(99)) if shard_of(name, SHARDS) not in state.here)
        event = (gone.encode(), orjson.dumps({"user_id": gone, "item_id": "1", "event_type": "click"}))
        assert await positions.passed(EVENTS, await producer.send(EVENTS, [event]), 20.0) == []
        ledger = ErasureLedger(settings, run.home)
        erasure = request(settings, ledger, gone)
        done = await asyncio.to_thread(Eraser(settings, ledger, NodeStates(), []).run, erasure.id)
        assert (done.state, done.reason) == ("done", None)
        assert sorted(bool(one.detail) for one in done.places) == [False, True], "one of them has waited"
        assert (await state.gather([("user", gone)], 20.0)).histories([("user", gone)])[0].version == 0
        ledger.close()

    async def rebuilt() -> None:
        """On both nodes at once, while events go on coming: each is in the next history, of whichever database."""
        job = IngestJob(settings, open_lake(settings, run.home), read_here, identities=run.home / IDENTITIES)
        await asyncio.to_thread(job.take_all)
        job.close()
        rebuilding = asyncio.create_task(asyncio.to_thread(rebuild_everywhere, print))
        while not rebuilding.done():
            await clicks()
        reports = await rebuilding
        assert reports is not None
        assert len(reports) == 2

        async def switched() -> bool:
            """Those that wait have no database of which to tell."""
            databases = [one for status in state_status() for one in (status, *status["shards"].values())]
            return {one["generation"] for one in databases if one["generation"] is not None} == {1}

        await until(switched)
        await clicks()

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
        await erased()
        # Of items one node's writer has the database, the other's waits for it (both share the home)
        item = await producer.send(ITEMS, [(b"i1", columns_message({"title": "A"}))])
        assert await ShardPositions(state, OtherNodes().applied).passed(ITEMS, item, 20.0) == []
        await rebuilt()
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

    async def even() -> bool:
        return state_lag()[EVENTS] == 0

    await until(even)  # it is looked at every half second
    assert ray.get_actor(SUPERVISOR, "manta") is not None
    producer.close()
    state.close()
