"""Which partition a key belongs to: murmur2 as Kafka's Java client computes it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Unsigned 32-bit murmur2 hash, equal to `org.apache.kafka.common.utils.Utils.murmur2` modulo 2**32."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for place in range(0, whole, 4):
        k = int.from_bytes(data[place : place + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: `toPositive(murmur2(key)) % partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """`partition_of` for many keys: int64 (n,)."""
    found = np.empty(len(keys), np.int64)
    places: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(len(key), []).append(place)
    for length, those in places.items():
        found[those] = (_murmur2_of([keys[place] for place in those], length) & 0x7FFFFFFF) % partitions
    return found


def _murmur2_of(keys: Sequence[bytes], length: int) -> NDArray[np.uint32]:
    """uint32 (n,) of n keys of one length; uint32 arithmetic wraps around as Java's does."""
    words = -(-length // 4)
    padded = np.zeros((len(keys), words * 4), np.uint8)
    padded[:, :length] = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), length)
    columns = padded.view("<u4").astype(np.uint32)
    m = np.uint32(_M)
    h = np.full(len(keys), _SEED ^ length, np.uint32)
    for place in range(length // 4):
        k = columns[:, place] * m
        k = (k ^ k >> np.uint32(24)) * m
        h = h * m ^ k
    if length % 4:
        h = (h ^ columns[:, -1]) * m
    h = (h ^ h >> np.uint32(13)) * m
    return h ^ h >> np.uint32(15)
