"""What a topic keeps, and whether that is enough: compaction where it would lose events, retention that is short."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from app.errors import MantaError
from app.events.schema import COMPACTED, EVENTS, IMPRESSIONS

UNLIMITED = -1
_HOUR_MS = 3_600_000
_SEGMENT_MS, _TOMBSTONE_MS = 168 * _HOUR_MS, 24 * _HOUR_MS  # where a broker does not say
_ASKED = (
    "cleanup.policy",
    "retention.ms",
    "retention.bytes",
    "segment.ms",
    "max.compaction.lag.ms",
    "delete.retention.ms",
    "message.timestamp.after.max.ms",
)
MOST_AHEAD_MS = 3_600_000  # what Kafka 4 takes by itself
_DAY_MS = 24 * _HOUR_MS
_CHECKS_MS = 900_000  # between the broker's looks, until the file is removed: 6 minutes by default
_NEVER_MS = 2**62  # what brokers say for a lag without bound is more


@dataclass(frozen=True, slots=True)
class Limits:
    """What a topic keeps, brokers' defaults included.

    Attributes:
        policy: `cleanup.policy`.
        retention_ms: -1: without end.
        retention_bytes: of one partition; -1: without end.
        segment_ms: after so much a new segment is begun, with the next message; only what is no longer written to is
            deleted or compacted.
        compaction_lag_ms: after so much what is superseded is compacted; -1: no bound.
        tombstone_ms: so long the message that something is withdrawn stays once it has been compacted.
        ahead_ms: a message whose timestamp is further ahead of the broker's clock is refused; None: it does not say.
    """

    policy: str = "delete"
    retention_ms: int = UNLIMITED
    retention_bytes: int = UNLIMITED
    segment_ms: int = _SEGMENT_MS
    compaction_lag_ms: int = UNLIMITED
    tombstone_ms: int = _TOMBSTONE_MS
    ahead_ms: int | None = None

    @property
    def deletes(self) -> bool:
        """Whether what is old, or too much, is deleted."""
        return "delete" in self.policy and (self.retention_ms != UNLIMITED or self.retention_bytes != UNLIMITED)


def topic_limits(admin: KafkaAdminClient, topics: Sequence[str]) -> dict[str, Limits]:
    """Topic to what it keeps; a broker that does not say (the embedded one) keeps everything."""
    if not topics:
        return {}
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, list(_ASKED)) for topic in topics]
    answers = admin.describe_configs(asked, config_filter="all").get("topic", {})
    return {topic: _limits(answers.get(topic, {})) for topic in topics}


def _limits(answer: dict[str, dict[str, Any]]) -> Limits:
    policy, *numbers, ahead = (answer.get(name, {}).get("value") for name in _ASKED)
    standing = (UNLIMITED, UNLIMITED, _SEGMENT_MS, UNLIMITED, _TOMBSTONE_MS)
    kept, size, segment, lag, tombstone = (int(found or one) for found, one in zip(numbers, standing, strict=True))
    lag = UNLIMITED if lag > _NEVER_MS else lag
    return Limits(str(policy or "delete"), kept, size, segment, lag, tombstone, None if ahead is None else int(ahead))


def refuse_compaction(limits: dict[str, Limits]) -> None:
    """The topics of which every message counts are not compacted.

    Raises:
        MantaError: `events` or `impressions` is.
    """
    for topic in (EVENTS, IMPRESSIONS):
        if topic in limits and "compact" in limits[topic].policy:
            raise MantaError(
                f"topic {topic}: found cleanup.policy={limits[topic].policy}, wanted delete: compaction would silently "
                "keep one message per user; alter the topic"
            )


def complaints(limits: dict[str, Limits], least_h: float) -> Iterator[str]:
    """A line for each topic that keeps less than is safe.

    Args:
        limits: topic to what it keeps.
        least_h: an outage of a reader that must lose nothing, hours.
    """
    for topic, kept in limits.items():
        hours = kept.retention_ms / _HOUR_MS
        if topic in COMPACTED and "compact" not in kept.policy and kept.deletes:
            yield (
                f"topic {topic}: found cleanup.policy={kept.policy}, wanted compact: what has not changed within its "
                "retention is lost to a new lake or state"
            )
        elif topic not in COMPACTED and kept.deletes and 0 <= hours < least_h:
            yield (
                f"topic {topic}: found retention.ms={kept.retention_ms} ({hours:.3g} h), wanted kafka.alarm_h="
                f"{least_h:g} h or more: readers that are away for longer lose messages"
            )
        if kept.ahead_ms is not None and kept.ahead_ms > _DAY_MS:
            yield (
                f"topic {topic}: found message.timestamp.after.max.ms={kept.ahead_ms}, wanted {MOST_AHEAD_MS}: a "
                "producer whose clock is years ahead is believed"
            )


def deleted_by(limits: Limits, last_ms: int) -> int | None:
    """When the last of what arrived up to `last_ms` is deleted at the latest, milliseconds; None: kept without end.

    A segment goes once its newest message is too old, and takes messages for `segment_ms`.
    """
    if "delete" not in limits.policy or limits.retention_ms == UNLIMITED:
        return None
    return last_ms + limits.segment_ms + limits.retention_ms + _CHECKS_MS


def compacted_by(limits: Limits, last_ms: int) -> int | None:
    """When what was withdrawn by `last_ms` is compacted away at the latest, the withdrawal too; None: no bound.

    Messages must go on to come: a segment ends with the first that comes behind its time. The withdrawal itself goes
    when the log is compacted once more.
    """
    if "compact" not in limits.policy or limits.compaction_lag_ms == UNLIMITED:
        return None
    once = min(limits.segment_ms, limits.compaction_lag_ms) + limits.compaction_lag_ms
    return last_ms + 2 * once + limits.tombstone_ms + _CHECKS_MS
