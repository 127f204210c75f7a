"""The state writers on Ray: started once, killed and back, with everything that was acknowledged."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
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
from app.state.replica import StateReplica
from deployments.cluster import attach
from deployments.node_actors import SUPERVISOR, WRITER_PREFIX
from deployments.state_writer import ensure_state_writers, state_lag, state_status, stop_state_writers

T = TypeVar("T")
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.kafka, pytest.mark.faults]


def until(ask: Callable[[], T], seconds: float = 30.0) -> T:
    """What `ask` says once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.02)
    return found


@pytest.fixture
def system(own_kafka: tuple[str, Path], short_home: Path) -> Iterator[tuple[Settings, Path]]:
    settings = Settings.model_validate(
        {"kafka": {"bootstrap_servers": own_kafka[0], "partitions": 2}, "ray": {"num_cpus": 2}}
    )
    ensure_topics(settings.kafka)
    with attach(settings, short_home, ends=True, say=print) as attached:
        yield attached.settings, short_home
        stop_state_writers()


def test_a_killed_writer_comes_back_and_loses_nothing(system: tuple[Settings, Path]) -> None:
    settings, home = system
    first = ensure_state_writers(settings, home)
    assert ensure_state_writers(settings, home)._actor_id == first._actor_id
    (status,) = until(lambda: [one for one in state_status() if one["state"] == "reading"])
    assert status["name"].startswith(WRITER_PREFIX)
    replica = StateReplica.of_home(home, "test")
    producer = EventProducer(settings.kafka, delivery_timeout_s=10)

    async def click(number: int) -> tuple[int, int]:
        event = {"user_id": "u", "item_id": str(number), "event_type": "click", "event_id": str(number)}
        (place,) = (await producer.send(EVENTS, [(b"u", orjson.dumps(event))])).items()
        return place

    async def clicks(first: int, count: int) -> tuple[int, int]:
        places = [await click(number) for number in range(first, first + count)]
        return places[-1]

    def applied(place: tuple[int, int]) -> bool:
        try:
            replica.catch_up()
        except StateUnavailable:
            return False
        return replica.applied(EVENTS, place[0]) > place[1]

    last = asyncio.run(clicks(0, 20))
    until(lambda: applied(last))
    os.kill(status["pid"], signal.SIGKILL)
    killed = time.monotonic()
    last = asyncio.run(clicks(20, 20))  # while nobody reads
    until(lambda: applied(last))
    print(f"back after {time.monotonic() - killed:.1f} s")
    (history,) = replica.histories([("user", "u")])
    assert history.item_ids == tuple(str(number) for number in range(40))

    ray.kill(ray.get_actor(SUPERVISOR, "manta"), no_restart=False)  # writers live on, the next supervisor finds them
    (again,) = until(lambda: [one for one in state_status() if one["state"] == "reading"])
    assert again["pid"] != status["pid"]
    until(lambda: state_lag() == {"events": 0, "items": 0, "users": 0})
    producer.close()
    replica.close()
