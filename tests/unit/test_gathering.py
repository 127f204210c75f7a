"""What is sent while the broker works on something goes out together."""

import asyncio

import pytest

from app.errors import BrokerUnavailable
from app.events.gathering import Gathering
from app.events.parcels import Single
from app.events.producer import EventProducer
from app.settings import KafkaSettings


def parcel() -> Single:
    return Single((b"key", b"value"), lambda _: None)


def test_the_first_goes_at_once_and_the_others_when_it_has_been_acknowledged() -> None:
    gathering, first, second, third = Gathering(), parcel(), parcel(), parcel()
    assert gathering.add(first, 0.0) == [first]
    assert gathering.add(second, 0.1) == []
    assert gathering.add(third, 0.2) == []
    assert gathering.acknowledged(0.3) == [second, third]
    assert gathering.acknowledged(0.4) == []
    assert gathering.acknowledged(0.5) == []
    assert gathering.add(first, 0.6) == [first]


def test_one_that_never_is_acknowledged_holds_the_others_up_for_a_second() -> None:
    gathering, first, second, third = Gathering(), parcel(), parcel(), parcel()
    assert gathering.add(first, 10.0) == [first]
    assert gathering.add(second, 10.5) == []
    assert gathering.ready(10.9) == []
    assert gathering.ready(11.0) == [second]
    assert gathering.add(third, 11.5) == []
    assert gathering.acknowledged(11.6) == [], "one of the two is under way yet"
    assert gathering.ready(11.7, at_once=True) == [third]


async def test_more_bytes_than_may_wait_for_the_broker_are_refused_at_once_and_nothing_stays_reserved() -> None:
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1", delivery_timeout_s=0.5)
    producer = EventProducer(nowhere, buffer_bytes=1_000_000)
    try:
        with pytest.raises(BrokerUnavailable, match="cannot keep up: the send buffer is full"):
            await producer.send("events", [(b"k", bytes(100_000))] * 20)
        for _ in range(1000):  # until the others have timed out
            if not producer.in_flight:
                break
            await asyncio.sleep(0.02)
        assert producer.in_flight == 0
        with pytest.raises(BrokerUnavailable, match="timed out"):
            await producer.send("events", [(b"k", bytes(100_000))])  # there is room again
    finally:
        producer.close(0.1)
