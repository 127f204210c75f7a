"""What was sent together, and who waits for it."""

import asyncio
import threading
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, Message

from app.errors import BrokerUnavailable
from app.events.gathering import Record


class Batch:
    """The messages of one `send` and the future that waits for them.

    Attributes:
        future: partition to the highest offset that these messages have there, or `BrokerUnavailable`.
    """

    __slots__ = ("_failure", "_highest", "_lock", "_loop", "_settled", "_waiting", "future", "records")

    def __init__(
        self,
        records: Sequence[Record],
        loop: asyncio.AbstractEventLoop,
        failure: Callable[[KafkaError], str],
        settled: Callable[[int, bool], None],
    ) -> None:
        """Args:
        records: (key, value) pairs, at least one.
        loop: where `future` is waited for.
        failure: a failed delivery in words.
        settled: called once, with the number of messages and whether the broker took some.
        """
        self.records = records
        self.future: asyncio.Future[dict[int, int]] = loop.create_future()
        self._loop, self._failure, self._settled = loop, failure, settled
        self._highest: dict[int, int] = {}
        self._waiting = len(records)
        self._lock = threading.Lock()

    def acknowledge(self, error: KafkaError | None, message: Message) -> None:
        """One has been delivered or has failed; runs in whatever thread polls."""
        if error is None:
            partition, offset = message.partition(), message.offset()
            if offset > self._highest.get(partition, -1):
                self._highest[partition] = offset
        else:
            self._call(self._fail, self._failure(error))
        self._settle(1)

    def cut(self, count: int, reason: str) -> None:
        """So many messages could not be handed over: the caller hears it now."""
        self._call(self._fail, reason)
        self._settle(count)

    def _settle(self, count: int) -> None:
        with self._lock:
            self._waiting -= count
            done = self._waiting == 0
        if done:
            self._call(self._succeed)
            self._settled(len(self.records), bool(self._highest))

    def _succeed(self) -> None:
        if not self.future.done():
            self.future.set_result(self._highest)

    def _fail(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(BrokerUnavailable(reason))

    def _call(self, action: Callable[..., object], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(action, *arguments)


class Single:
    """One message that nobody waits for."""

    __slots__ = ("_settled", "records")

    def __init__(self, record: Record, settled: Callable[[bool], None]) -> None:
        """`settled`: called once; whether the broker took it."""
        self.records = (record,)
        self._settled = settled

    def acknowledge(self, error: KafkaError | None, _message: Message) -> None:
        """It has been delivered or has failed."""
        self._settled(error is None)

    def cut(self, _count: int, _reason: str) -> None:
        """It could not be handed over."""
        self._settled(False)


class Bulk:
    """The count of one `send_blocking`; a broker that turns us away ends it at once."""

    def __init__(self, address: str, refusal: Callable[[], str]) -> None:
        """`refusal`: why the broker turns us away; empty: it does not."""
        self._address, self._refusal = address, refusal
        self.done = 0
        self.failure: str | None = None

    def acknowledge(self, error: KafkaError | None, _message: Message) -> None:
        """One has been delivered or has failed."""
        if error is not None:
            self.failure = error.str()
        self.done += 1

    def raise_failure(self) -> None:
        """Raises BrokerUnavailable where one has failed or the broker turns us away."""
        refusal = self._refusal()
        if self.failure is not None or refusal:
            raise BrokerUnavailable(f"Kafka at {self._address}: {self.failure or 'sending has stopped'}{refusal}")
