"""Topics as a writer reads them: by assign and seek from its own offsets, through outages and gaps."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import monotonic

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from app.errors import MantaError
from app.events.connection import QuietLogger, consumer_config
from app.events.doze import Doze, Place
from app.events.ranges import TopicBounds
from app.events.schema import EVENTS, ITEMS, USERS
from app.events.topics import bounds
from app.settings import KafkaSettings
from app.state.arrivals import LOOKED_AT, Arrivals
from app.state.store import StateStore

TOPICS = (EVENTS, ITEMS, USERS)
_REFRESH_S = 5.0  # how soon a new partition is noticed
_MISSING_S = 0.5  # how soon a topic that was not there

log = logging.getLogger("manta.state")


@dataclass(slots=True)
class Read:
    """What one poll brought.

    Attributes:
        messages: in offset order within each partition.
        offsets: partition → next offset once they are applied; also of partitions that moved without a message.
        jumps: offsets that were not there to be read, by kind.
    """

    messages: list[Message] = field(default_factory=list)
    offsets: dict[Place, int] = field(default_factory=dict)
    jumps: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.offsets)


class StateFeed:
    """A consumer of every partition of some topics. For one thread.

    Where the log no longer holds the next offset, reading goes on from where it can and the jump is counted:
    `log_end` (the broker lost what it had acknowledged), `gap` (retention was faster, or has deleted what a new reader
    would begin with), `recreated` (another topic).
    """

    def __init__(
        self,
        settings: KafkaSettings,
        offsets: Mapping[str, Mapping[int, int]],
        topic_ids: dict[str, str],
        *,
        topics: Sequence[str] = TOPICS,
        group: str = "manta-state",
        reads: Callable[[str, int], bool] = lambda _, __: True,
    ) -> None:
        """Takes the next offset of each partition that is known, and the ids of the topics they belong to.

        Args:
            group: the name that monitoring sees; nothing is balanced over it.
            reads: whether a partition of a topic is read.
        """
        self._settings, self._topics, self._reads = settings, tuple(topics), reads
        self.partitions: dict[str, int] = {}  # how many each topic has, those that are not read too
        self._there: set[Place] = set()
        self._next = {(topic, p): offset for topic, parts in offsets.items() for p, offset in parts.items()}
        self._moved = Read()
        self.topic_ids = topic_ids
        self._assigned: set[Place] = set()
        self._arrivals = Arrivals()
        self._ends: dict[Place, int] = {}  # as the last comparison found them
        self._suspect = True  # whether offsets must be compared with the log before anything is read
        self._looked = 0.0
        self.error: str | None = None
        self._asking = ThreadPoolExecutor(1, "state-bounds")
        self._answer: Future[dict[str, TopicBounds]] | None = None
        config = consumer_config(
            settings,
            group__id=group,
            enable__partition__eof=True,
            log__connection__close=True,  # else a broken connection would not be reported here
            fetch__wait__max__ms=100,
            fetch__error__backoff__ms=50,
            fetch__queue__backoff__ms=5,
            queued__max__messages__kbytes=16_384,
            topic__metadata__refresh__interval__ms=10_000,
            error_cb=self._on_error,
        )
        self._consumer = Consumer(config, logger=QuietLogger())
        self._doze = None if settings.long_polls else Doze(self._consumer)

    def _on_error(self, error: KafkaError) -> None:
        """A broken connection: what comes after may be a broker that has forgotten something."""
        self._suspect = True
        self.error = error.str()

    def poll(self, timeout_s: float, limit: int) -> Read:
        """Up to `limit` messages; waits `timeout_s` for the first. Nothing while the broker is away."""
        refresh_s = _REFRESH_S if len({topic for topic, _ in self._there}) == len(self._topics) else _MISSING_S
        if not self._suspect and monotonic() - self._looked > refresh_s:
            self._look_for_partitions()
        if self._suspect:
            self._compare(timeout_s)
        if self._suspect or not self._assigned or self._moved:
            self._consumer.poll(0 if self._moved else timeout_s)  # serves the callbacks
            moved, self._moved = self._moved, Read()
            return moved
        if self._doze is not None and not self._doze.wait(self._next, timeout_s):
            timeout_s = 0  # only the callbacks are served
        first = self._consumer.poll(timeout_s)
        read = Read()
        if first is not None:
            self._take([first, *self._consumer.consume(limit - 1, 0)], read)
            self._next.update(read.offsets)
        return read

    def _take(self, messages: Sequence[Message], read: Read) -> None:
        """A partition's messages come in runs: what is the same for all of a run is looked up once."""
        topic, partition, start = "", -1, 0
        for number, message in enumerate(messages):
            if message.partition() != partition or message.topic() != topic:
                if number:
                    self._take_run((topic, partition), messages[start:number], read)
                topic, partition, start = message.topic(), message.partition(), number
        self._take_run((topic, partition), messages[start:], read)

    def _take_run(self, place: Place, run: Sequence[Message], read: Read) -> None:
        """Messages of one partition, and what the consumer has to say of it."""
        known = upto = max(read.offsets.get(place, 0), self._next.get(place, 0))
        taken = len(read.messages)
        for message in run:
            error, offset = message.error(), message.offset()
            if error is None:
                if offset >= upto:
                    read.messages.append(message)
                    upto = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                upto = max(upto, offset)  # transaction markers, or what compaction took out at the end
            else:  # out of range, a partition that has gone, authorization: compare with the log anew
                self._suspect, self.error = True, error.str()
        if upto > known:
            read.offsets[place] = upto
        for message in read.messages[taken:][-LOOKED_AT:]:
            self._arrivals.saw(place, message)

    def lag(self) -> dict[str, int]:
        """Topic → messages in the log that are not applied, as far as the consumer has heard."""
        lag = dict.fromkeys(self._topics, 0)
        for (topic, _), messages in self.behind().items():
            lag[topic] += messages
        return lag

    def behind(self) -> dict[Place, int]:
        """Every partition that is read → messages that are not applied, as far as the consumer has heard."""
        behind = {}
        ends = self._ends | (self._doze.ends if self._doze is not None else {})
        for place in self._assigned:
            try:
                _, heard = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            except KafkaException:
                heard = -1
            behind[place] = max(0, max(heard, ends.get(place, 0)) - self._next.get(place, 0))
        return behind

    @property
    def ends(self) -> dict[Place, int]:
        """Where each partition that is read ended when the log was last compared with; empty before that."""
        return self._ends

    def reached_ms(self, topic: str) -> int | None:
        """When the oldest message arrived that may still be read of a topic (`app.state.arrivals`); None: not known."""
        return self._arrivals.reached_ms(topic, self.behind())

    @property
    def connected(self) -> bool:
        """Whether the broker answered when it was last asked."""
        return not self._suspect

    def close(self) -> None:
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._consumer.close()

    # --- the log against our offsets

    def _look_for_partitions(self) -> None:
        """Notices topics and partitions that are new or gone."""
        self._looked = monotonic()
        try:
            topics = self._consumer.list_topics(timeout=1.0).topics
        except KafkaException:
            return  # the error callback has heard of it too
        there = {
            (topic, partition) for topic in self._topics if topic in topics for partition in topics[topic].partitions
        }
        self._suspect = self._suspect or there != self._there

    def _compare(self, timeout_s: float) -> None:
        """Asks what the log holds, in a thread of its own; once answered, reads on from where that is possible."""
        if self._answer is None:
            self._answer = self._asking.submit(bounds, self._settings, self._topics)
        try:
            held = self._answer.result(timeout_s)
        except TimeoutError:
            return
        except Exception as error:  # whatever a broker that comes and goes does to a client: it is asked again
            if not isinstance(error, MantaError):
                log.warning("the topics could not be looked at: %r", error)
            self._answer, self.error = None, str(error)
            return
        self._answer, self._looked = None, monotonic()
        self._there = {(topic, partition) for topic in self._topics for partition in held[topic].end}
        self.partitions = {topic: len(held[topic].end) for topic in self._topics}
        held = {topic: self._read_of(held[topic]) for topic in self._topics}
        for topic in self._topics:
            self._compare_topic(held[topic])
        self._ends = {(topic, partition): end for topic in self._topics for partition, end in held[topic].end.items()}
        self._assigned = set(self._ends)
        self._consumer.assign([TopicPartition(*place, self._next[place]) for place in sorted(self._assigned)])
        if self._doze is not None:
            self._doze.assigned(self._assigned)
        self._suspect, self.error = False, None

    def _read_of(self, held: TopicBounds) -> TopicBounds:
        """A topic as if it had only the partitions that are read."""
        first, end = (
            {partition: at for partition, at in places.items() if self._reads(held.topic, partition)}
            for places in (held.first, held.end)
        )
        return replace(held, first=first, end=end)

    def _compare_topic(self, held: TopicBounds) -> None:
        """Moves offsets that the log does not hold."""
        known = self.topic_ids.get(held.topic)
        recreated = bool(known and held.topic_id) and known != held.topic_id
        if held.topic_id:
            self.topic_ids[held.topic] = held.topic_id
        for partition, end in held.end.items():
            place, first = (held.topic, partition), held.first[partition]
            wanted = self._next.get(place)
            if wanted is None and not first:
                self._next[place] = 0
            elif wanted is None:  # a new reader of a log whose beginning is gone
                self._jump("gap", place, 0, first)
            elif recreated and wanted != first:
                self._jump("recreated", place, wanted, first)
            elif wanted > end:
                self._jump("log_end", place, wanted, end)
            elif wanted < first:
                self._jump("gap", place, wanted, first)
        if recreated:  # with fewer partitions: one that is added later begins anew
            for place in [place for place in self._next if place[0] == held.topic and place[1] not in held.end]:
                if self._next[place]:
                    self._jump("recreated", place, self._next[place], 0)

    def _jump(self, kind: str, place: Place, wanted: int, now: int) -> None:
        log.error("topic %s, partition %d: %s: offset %d was next, going on from %d", *place, kind, wanted, now)
        jumps = self._moved.jumps
        jumps[kind] = jumps.get(kind, 0) + abs(wanted - now)
        self._next[place] = self._moved.offsets[place] = now


def feed_of(settings: KafkaSettings, store: StateStore) -> StateFeed:
    """What a database is written from, from where it stands."""
    share = store.share
    return StateFeed(settings, store.offsets(), store.topic_ids, topics=share.topics, reads=share.reads)
