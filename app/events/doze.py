"""A consumer at rest: for a broker that answers an empty fetch at once, so that its readers would never stop asking."""

import time
from collections.abc import Mapping

from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

PERIOD_S = 0.01  # how long a new message may lie unnoticed
ASK_S = 1.0

Place = tuple[str, int]  # topic, partition


class Doze:
    """Keeps every partition without news paused, and asks one question for all ends instead of fetching from each.

    librdkafka notices a resumed partition only when its broker thread wakes (up to 1 s later): a question about the
    ends, asked just after resuming, wakes it.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._asked: list[TopicPartition] = []
        self._awake: set[Place] = set()
        self.ends: dict[Place, int] = {}

    def assigned(self, places: set[Place]) -> None:
        """The consumer was just assigned these; it fetches from all of them until the first `wait`."""
        self._asked = [TopicPartition(*place, OFFSET_END) for place in sorted(places)]
        self._awake = set(places)

    def wait(self, following: Mapping[Place, int], timeout_s: float) -> bool:
        """Whether a partition has messages from its next offset on; waits up to `timeout_s` for the first.

        Call it when what was consumed so far is in `following`: a paused partition forgets what it has fetched.
        A broker that does not answer has no news.
        """
        deadline = time.monotonic() + timeout_s
        while self._ask():
            news = {place for place, end in self.ends.items() if end > following.get(place, 0)}
            if quiet := self._awake - news:
                self._consumer.pause([TopicPartition(*place) for place in quiet])
            if woken := news - self._awake:
                self._consumer.resume([TopicPartition(*place) for place in woken])
                self._ask()
            self._awake = news
            if news or time.monotonic() > deadline:
                return bool(news)
            time.sleep(PERIOD_S)
        return False

    def _ask(self) -> bool:
        try:
            found = self._consumer.offsets_for_times(self._asked, timeout=ASK_S)
        except KafkaException:
            return False
        self.ends = {(one.topic, one.partition): one.offset for one in found if one.error is None}
        return True
