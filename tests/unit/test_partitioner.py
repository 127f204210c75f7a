"""One partitioner everywhere: Kafka's own vectors."""

import pytest
from confluent_kafka import Producer

from app.events.partitioner import murmur2, partition_of, partitions_of

# org.apache.kafka.common.utils.UtilsTest#testMurmur2
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "wanted"), VECTORS.items())
def test_murmur2_is_kafkas(key: bytes, wanted: int) -> None:
    assert murmur2(key) == wanted % 2**32


def test_a_negative_hash_becomes_positive_as_kafka_does_it() -> None:
    # toPositive clears the sign bit; abs() would put these keys elsewhere
    assert partition_of(b"21", 1000) == (-973932308 & 0x7FFFFFFF) % 1000
    assert partition_of(b"", 7) == (murmur2(b"") & 0x7FFFFFFF) % 7


def test_many_keys_lie_where_each_lies() -> None:
    keys = [*VECTORS, b"", *(b"u%d" % number for number in range(500)), "é".encode(), b"\xff" * 128, b"21"]
    assert partitions_of(keys, 7).tolist() == [partition_of(key, 7) for key in keys]
    assert partitions_of([], 7).tolist() == []


def test_librdkafka_knows_the_name_that_we_set() -> None:
    Producer({"partitioner": "murmur2_random"})
