"""Messages on their way to one topic: those that the broker has not acknowledged, and those that wait for them."""

from collections.abc import Sequence
from typing import Any, Protocol

from confluent_kafka import Message

Record = tuple[bytes, bytes | None]

_HELD_S = 1.0


class Parcel(Protocol):
    """Messages that were sent together, and who waits for them."""

    @property
    def records(self) -> Sequence[Record]:
        """(key, value) pairs."""

    def acknowledge(self, error: Any, message: Message) -> None:
        """One of them has been delivered or has failed; once all are, the gathering hears `acknowledged`."""

    def cut(self, count: int, reason: str) -> None:
        """So many of them could not be handed over."""


class Gathering:
    """Holds parcels back while earlier ones are unacknowledged, so that they go out together.

    An idempotent producer of librdkafka has one request a partition on its way, and while messages wait behind it
    longer than `linger.ms`, its thread polls without a pause: nearly half of what a busy gateway computed. What is
    gathered here waits for nothing where the broker is idle, and about one round trip where it is not; at most 1 s,
    so that one partition whose leader is gone does not hold up the others.

    Not thread-safe: the producer's lock is held by whoever calls.
    """

    def __init__(self) -> None:
        self._held: list[Parcel] = []
        self._flying = 0
        self._since = 0.0

    def add(self, parcel: Parcel, now_s: float) -> list[Parcel]:
        """What is to be handed over now, this one with it or not."""
        self._held.append(parcel)
        return self.ready(now_s)

    def acknowledged(self, now_s: float) -> list[Parcel]:
        """A parcel has been settled wholly: what is to be handed over now."""
        self._flying -= 1
        return self.ready(now_s)

    def ready(self, now_s: float, *, at_once: bool = False) -> list[Parcel]:
        """What is to be handed over now; `at_once`: all."""
        if not self._held or (self._flying and now_s - self._since < _HELD_S and not at_once):
            return []
        taken, self._held = self._held, []
        self._flying += len(taken)
        self._since = now_s
        return taken
