"""When single messages arrived: fetches a batch a partition and no more."""

import time
from collections.abc import Mapping

from confluent_kafka import Consumer, TopicPartition

from app.events.connection import QuietLogger, consumer_config
from app.settings import KafkaSettings

_ANSWER_S = 5.0


class MessageTimes:
    """A consumer that is asked for timestamps."""

    def __init__(self, settings: KafkaSettings) -> None:
        config = consumer_config(
            settings,
            group__id="manta-times",
            auto__offset__reset="earliest",
            enable__partition__eof=True,
            queued__min__messages=1,
            fetch__queue__backoff__ms=5,
            fetch__message__max__bytes=1_000,
        )
        self._consumer = Consumer(config, logger=QuietLogger())

    def at(self, places: Mapping[tuple[str, int], int], *, upto_ms: int | None = None) -> dict[tuple[str, int], int]:
        """Milliseconds of the first message at or behind an offset; a partition without one is left out.

        Args:
            places: (topic, partition) → offset.
            upto_ms: messages of later times are passed over: their clock was wrong, and says nothing of those behind
                them. None: all count.
        """
        known: dict[tuple[str, int], int] = {}
        waiting = set(places)
        self._consumer.assign([TopicPartition(topic, part, places[topic, part]) for topic, part in waiting])
        deadline = time.monotonic() + _ANSWER_S
        while waiting and time.monotonic() < deadline:
            message = self._consumer.poll(0.1)
            if message is None or (message.topic(), message.partition()) not in waiting:
                continue
            place = (message.topic(), message.partition())
            if message.error() is None:
                moment = message.timestamp()[1]
                if upto_ms is not None and moment > upto_ms:
                    continue
                known[place] = moment
            waiting.discard(place)
        self._consumer.unassign()
        return known

    def close(self) -> None:
        self._consumer.close()
