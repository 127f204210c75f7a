"""Topics, their ids, partitions and offsets: administration, through kafka-python."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import InvalidConfigurationError, KafkaError, TopicAlreadyExistsError, for_code
from kafka.protocol.consumer import IsolationLevel

from app.errors import BrokerUnavailable
from app.events.connection import admin_config, bootstrap_servers, check_connection, guarded
from app.events.limits import MOST_AHEAD_MS, complaints, refuse_compaction, topic_limits
from app.events.ranges import TopicBounds
from app.events.schema import COMPACTED, DLQ, EVENTS, IMPRESSIONS, ITEMS, PUBLISHED, USERS
from app.settings import KafkaSettings

ALL_TOPICS = (EVENTS, ITEMS, USERS, IMPRESSIONS, DLQ, PUBLISHED)
# The rooms for messages that no partition count needs to spread.
_ONE_PARTITION = frozenset({DLQ, PUBLISHED})
_COMPACTION_LAG_MS = 7 * 86_400_000  # else nobody can say when the columns of an erased user leave the broker
_AHEAD = "message.timestamp.after.max.ms"
_UNKNOWN_TOPIC = 3
# What lake and state read.
_LEARNED = (EVENTS, ITEMS, USERS, IMPRESSIONS)

log = logging.getLogger(__name__)


@contextmanager
def administration(settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """A kafka-python admin client that is closed at the end.

    Raises:
        BrokerUnavailable: the broker cannot be reached or breaks off.
    """
    address = bootstrap_servers(settings)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what it would log, the error below says in one line
    client = None
    try:
        patience_ms = 4_000 if guarded(settings) else 10_000  # a client that is turned away would knock until then
        client = KafkaAdminClient(**admin_config(settings), request_timeout_ms=10_000, bootstrap_timeout_ms=patience_ms)
        yield client
    except KafkaError as error:
        if client is None and guarded(settings):
            check_connection(settings, 2.0)  # says why: kafka-python only says that it was not let in
        raise BrokerUnavailable(f"Kafka at {address}: {error or type(error).__name__}") from None
    finally:
        if client is not None:
            client.close()


def ensure_topics(settings: KafkaSettings, topics: Iterable[str] = ALL_TOPICS) -> list[str]:
    """Creates the topics that are missing (`items`, `users` compacted; nothing retained less than the broker does).

    What is superseded in `users` is compacted within a week.
    A message whose timestamp is more than an hour ahead of the broker's clock is refused (Kafka 3.6 and later).

    What the topics that were there keep is checked, and said where it is not enough.

    Returns:
        The topics made now.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
        MantaError: `events` or `impressions` is compacted: it would silently keep one event per user.
    """
    with administration(settings) as admin:
        wanted = list(topics)
        there = {t["name"] for t in admin.describe_topics(wanted) if t["error_code"] == 0}
        missing = [topic for topic in wanted if topic not in there]
        for topic in missing:
            configs = {"cleanup.policy": "compact"} if topic in COMPACTED else {}
            if topic == USERS:
                configs["max.compaction.lag.ms"] = str(_COMPACTION_LAG_MS)
            partitions = 1 if topic in _ONE_PARTITION else settings.partitions
            made = {"num_partitions": partitions, "replication_factor": settings.replication_factor, "configs": configs}
            _create(admin, topic, made)
        if missing:
            admin.wait_for_topics(missing)
        limits = topic_limits(admin, [topic for topic in wanted if topic in there and topic in _LEARNED])
    refuse_compaction(limits)
    for line in complaints(limits, settings.alarm_h):
        log.warning(line)
    return missing


def _create(admin: KafkaAdminClient, topic: str, made: dict[str, Any]) -> None:
    """Makes a topic that refuses messages of clocks that are far ahead, where the broker can."""
    configs = made["configs"]
    with suppress(TopicAlreadyExistsError):
        try:
            admin.create_topics({topic: {**made, "configs": {**configs, _AHEAD: str(MOST_AHEAD_MS)}}})
        except InvalidConfigurationError:  # Kafka before 3.6
            admin.create_topics({topic: made})


def topic_ids(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """Topic to its id; topics that do not exist are left out, a broker without ids gives ""."""
    with administration(settings) as admin:
        return {t["name"]: str(t["topic_id"] or "") for t in admin.describe_topics(list(topics)) if not t["error_code"]}


def bounds(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, TopicBounds]:
    """What each topic holds now; a topic that does not exist has no partitions.

    Raises:
        BrokerUnavailable: the broker cannot be reached, or does not tell of a topic.
    """
    with administration(settings) as admin:
        described = {t["name"]: t for t in admin.describe_topics(list(topics)) if t["error_code"] != _UNKNOWN_TOPIC}
        for name, found in described.items():
            if found["error_code"]:  # not said to be missing: it may be there
                raise BrokerUnavailable(f"topic {name}: {for_code(found['error_code']).__name__}")
        parts = [TopicPartition(name, p["partition_index"]) for name, t in described.items() for p in t["partitions"]]
        first = admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.EARLIEST)) if parts else {}
        end = _committed_ends(admin, parts) if parts else {}
    held = {name: TopicBounds(name, str(t["topic_id"] or "")) for name, t in described.items()}
    for part in parts:
        held[part.topic].first[part.partition] = first[part].offset
        held[part.topic].end[part.partition] = end[part].offset
    return {topic: held.get(topic, TopicBounds(topic, "")) for topic in topics}


def _committed_ends(admin: KafkaAdminClient, parts: list[TopicPartition]) -> dict[TopicPartition, OffsetSpec]:
    """Ends as a `read_committed` reader sees them: an open transaction is not passed over."""
    wanted = dict.fromkeys(parts, OffsetSpec.LATEST)
    found: dict[TopicPartition, OffsetSpec] = admin.list_partition_offsets(
        wanted, isolation_level=IsolationLevel.READ_COMMITTED
    )
    return found
