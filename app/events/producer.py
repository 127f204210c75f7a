"""Sending to Kafka: idempotent, acknowledged by all replicas, bounded in memory, never blocking an event loop."""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.errors import BrokerUnavailable
from app.events.connection import QuietLogger, bootstrap_servers, client_config, turned_away
from app.events.gathering import Gathering, Parcel, Record
from app.events.parcels import Batch, Bulk, Single
from app.settings import KafkaSettings

_POLL_S = 0.05
# How often an event loop asks for acknowledgements while it waits for some.
_TICK_S = 0.002
# Larger than any message that the rules let through; the broker's own default limit is 1,048,588.
_MAX_MESSAGE_BYTES = 1_048_000


class EventProducer:
    """One confluent-kafka producer.

    Its acknowledgements are taken by the event loop that waits for them: a thread beside a busy loop would wait for
    the interpreter up to 5 ms for each. Where no loop asks, a thread of its own takes them.

    Args:
        settings: `settings.kafka`.
        max_optional: messages of `try_send` that may wait for the broker; beyond, they are dropped and counted.
        delivery_timeout_s: after this an unacknowledged message has failed; default `kafka.delivery_timeout_s`.
        linger_ms: how long a batch is gathered; default `kafka.linger_ms`.
        buffer_bytes: of messages that wait for the broker; beyond, `send` and `try_send` refuse, `send_blocking` waits.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        max_optional: int = 50_000,
        delivery_timeout_s: float | None = None,
        linger_ms: float | None = None,
        buffer_bytes: int = 268_000_000,
    ) -> None:
        self._address = bootstrap_servers(settings)
        self._max_in_flight = settings.max_in_flight_events
        self._max_optional = max_optional
        self._config = client_config(
            settings,
            enable__idempotence=True,
            acks="all",
            partitioner="murmur2_random",
            linger__ms=settings.linger_ms if linger_ms is None else linger_ms,
            message__timeout__ms=int(1000 * (delivery_timeout_s or settings.delivery_timeout_s)),
            message__max__bytes=_MAX_MESSAGE_BYTES,
            batch__size=1_000_000,
            queue__buffering__max__messages=2 * (self._max_in_flight + max_optional),
            queue__buffering__max__kbytes=buffer_bytes // 1024,
            error_cb=self._on_error,
        )
        self.in_flight = 0
        self.optional_in_flight = 0
        self.dropped = 0
        self.failed = 0
        self._lock = threading.Lock()
        self._gatherings: dict[str, Gathering] = defaultdict(Gathering)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked_s = 0.0
        self._fatal = False
        self._refusal = ""  # why the broker turns us away, while it does
        self._closed = False
        self._log = QuietLogger()
        self._producer = self._connect()
        self._poller = threading.Thread(target=self._poll, name="manta-producer", daemon=True)
        self._poller.start()

    async def send(self, topic: str, messages: Sequence[Record]) -> dict[int, int]:
        """Sends and waits, without blocking the loop, until every message is acknowledged.

        Args:
            topic: the topic; it exists.
            messages: (key, value) pairs; a value of None is a tombstone.

        Returns:
            Partition → the highest offset that these messages have there.

        Raises:
            BrokerUnavailable: too many unacknowledged messages (at once), or a delivery failed or timed out. Some of
                the messages may stand in the topic all the same: repeat them with the same event ids.
        """
        if not messages:
            return {}
        loop = asyncio.get_running_loop()
        self._reserve(len(messages))
        batch = Batch(messages, loop, self._failure, partial(self._settled, topic))
        self._gather(topic, batch)
        self._tick_in(loop)
        return await batch.future

    def try_send(self, topic: str, key: bytes, value: bytes | None) -> bool:
        """Sends without waiting for anything; False: dropped, since too many wait (counted in `dropped`)."""
        with self._lock:
            full = self.optional_in_flight >= self._max_optional or self._closed
            self.optional_in_flight += not full
            self.dropped += full
        if full:
            return False
        self._gather(topic, Single((key, value), partial(self._single_settled, topic)))
        with suppress(RuntimeError):  # no loop runs here: the thread polls
            self._tick_in(asyncio.get_running_loop())
        return True

    def send_blocking(
        self, topic: str, messages: Iterable[Record], progress: Callable[[int], None] | None = None
    ) -> int:
        """Sends any number of messages, waiting where the broker is slower, until all are acknowledged.

        Args:
            topic: the topic; it exists.
            messages: (key, value) pairs, taken as they are needed.
            progress: called now and then with the number acknowledged so far.

        Returns:
            The number of messages, all acknowledged.

        Raises:
            BrokerUnavailable: a delivery failed or timed out.
        """
        self._refusal = ""
        bulk = Bulk(self._address, lambda: self._refusal)
        sent = 0
        for key, value in messages:
            while sent - bulk.done >= self._max_in_flight or not self._offer(topic, key, value, bulk.acknowledge):
                bulk.raise_failure()
                time.sleep(0.001)
            sent += 1
            if sent % 10_000 == 0:
                bulk.raise_failure()
                if progress is not None:
                    progress(bulk.done)
        while bulk.done < sent:
            bulk.raise_failure()
            time.sleep(0.001)
        bulk.raise_failure()
        if progress is not None:
            progress(sent)
        return sent

    def close(self, timeout_s: float = 5.0) -> None:
        """Delivers what waits (at most `timeout_s`) and ends the poll thread. Blocks."""
        if self._closed:
            return
        self._closed = True
        self._poller.join()
        self._release(at_once=True)
        self._producer.flush(timeout_s)

    def _connect(self) -> Producer:
        return Producer(self._config, logger=self._log)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True
        if turned_away(error):
            self._refusal = f"; it turns this client away: {error.str()}"
        self._log.log(logging.WARNING, "%s: Kafka at %s: %s", error.name(), self._address, error.str())

    def _poll(self) -> None:
        while not self._closed:
            if self._ticker is not None and time.monotonic() - self._ticked_s < 2 * _POLL_S:
                time.sleep(_POLL_S)
            else:
                self._producer.poll(_POLL_S)
                self._release()

    def _tick_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """The running `loop` asks for acknowledgements until none is missing."""
        if self._ticker is None or self._loop is not loop:
            self._loop = loop
            self._ticked_s = time.monotonic()
            self._ticker = loop.call_later(_TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return  # another one asks now
        self._ticked_s = time.monotonic()
        waits = not self._closed and self.in_flight + self.optional_in_flight > 0
        self._ticker = loop.call_later(_TICK_S, self._tick, loop) if waits else None
        self._producer.poll(0)
        self._release()

    def _gather(self, topic: str, parcel: Parcel) -> None:
        with self._lock:
            ready = self._gatherings[topic].add(parcel, time.monotonic())
        self._hand_over(topic, ready)

    def _release(self, *, at_once: bool = False) -> None:
        """Hands over what has been held back long enough."""
        for topic, gathering in tuple(self._gatherings.items()):
            with self._lock:
                ready = gathering.ready(time.monotonic(), at_once=at_once)
            self._hand_over(topic, ready)

    def _hand_over(self, topic: str, parcels: Sequence[Parcel]) -> None:
        """Gives them to librdkafka; what it refuses is cut from its parcel."""
        if parcels and self._fatal:
            self._renew()
        # One call: what librdkafka takes singly leaves in several requests, of which the later ones wait.
        messages: list[dict[str, Any]] = [
            {"key": key, "value": value, "callback": parcel.acknowledge}
            for parcel in parcels
            for key, value in parcel.records
        ]
        try:
            if not messages or self._producer.produce_batch(topic, messages) == len(messages):
                return
        except (KafkaException, BufferError) as error:
            for parcel in parcels:
                parcel.cut(len(parcel.records), f"Kafka at {self._address}: {error}")
            return
        place = 0
        for parcel in parcels:
            own = messages[place : place + len(parcel.records)]
            place += len(own)
            errors = [message["_error"] for message in own if "_error" in message]
            if errors:
                full = errors[0].code() == KafkaError._QUEUE_FULL
                why = " cannot keep up: the send buffer is full" if full else f": {errors[0].str()}"
                parcel.cut(len(errors), f"Kafka at {self._address}{why}")

    def _offer(self, topic: str, key: bytes, value: bytes | None, done: Callable[[Any, Message], None]) -> bool:
        """Hands a message to librdkafka; False: its buffer is full."""
        if self._closed:
            raise BrokerUnavailable("the producer is closed")
        if self._fatal:
            self._renew()
        try:
            self._producer.produce(topic, value, key, on_delivery=done)
        except BufferError:
            return False
        except KafkaException as error:
            raise BrokerUnavailable(f"Kafka at {self._address}: {error.args[0].str()}") from None
        return True

    def _renew(self) -> None:
        """An idempotent producer never sends again after a fatal error (its broker forgot it): a new one does."""
        with self._lock:
            if not self._fatal:
                return
            old, self._producer = self._producer, self._connect()
            self._fatal = False
        self._log.log(logging.WARNING, "%s: Kafka at %s: new producer after a fatal error", "renew", self._address)
        old.purge()
        threading.Thread(target=old.flush, args=(5.0,), daemon=True).start()  # its callbacks say what has failed

    def _reserve(self, count: int) -> None:
        with self._lock:
            if self._closed:
                raise BrokerUnavailable("the producer is closed")
            if self.in_flight + count > self._max_in_flight:
                raise BrokerUnavailable(
                    f"Kafka at {self._address} cannot keep up: {self.in_flight} events wait for it and {count} "
                    f"more came, wanted at most {self._max_in_flight}"
                )
            self.in_flight += count

    def _settled(self, topic: str, count: int, acknowledged: bool) -> None:
        """The messages of a `send` wait no longer; `acknowledged`: the broker took some of them."""
        with self._lock:
            self.in_flight -= count
        self._landed(topic, acknowledged)

    def _single_settled(self, topic: str, acknowledged: bool) -> None:
        """A message of `try_send` waits no longer."""
        with self._lock:
            self.optional_in_flight -= 1
            self.dropped += not acknowledged
        self._landed(topic, acknowledged)

    def _landed(self, topic: str, acknowledged: bool) -> None:
        """Hands over what has waited for a parcel of the topic."""
        if acknowledged:
            self._refusal = ""
        with self._lock:
            ready = self._gatherings[topic].acknowledged(time.monotonic())
        self._hand_over(topic, ready)

    def _failure(self, error: KafkaError) -> str:
        """A failed delivery, counted, in words."""
        self.failed += 1
        return f"Kafka at {self._address}: {error.str()}{self._refusal}"
