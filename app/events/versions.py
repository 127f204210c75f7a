"""Which of two versions of an item or a user is the latest: one rule for lake and state."""

from typing import NamedTuple

MOST_AHEAD_MS = 86_400_000  # a timestamp further ahead of the reader's clock is of a wrong one; ours may be wrong too
_LONG_AGO = -(1 << 62)


class VersionPlace(NamedTuple):
    """Where a version came from: its partition, and its record's timestamp in milliseconds."""

    partition: int
    arrived: int


def stays(held: VersionPlace, other: VersionPlace, now_ms: int) -> bool:
    """Whether a version stands though another is read behind it.

    Within a partition the later offset holds, which is the one that is read later. Where partitions were added an id
    may have versions in two: of those the one that arrived last holds, but none of a clock that is far ahead.
    """
    if held.partition == other.partition:
        return False
    return (_believed(held.arrived, now_ms), held.partition) > (_believed(other.arrived, now_ms), other.partition)


def _believed(arrived_ms: int, now_ms: int) -> int:
    return arrived_ms if arrived_ms <= now_ms + MOST_AHEAD_MS else _LONG_AGO
