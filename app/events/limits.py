"""What a topic keeps, and whether that is enough: compaction where it would lose events, retention that is short."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from app.errors import MantaError
from app.events.schema import COMPACTED, EVENTS, IMPRESSIONS

UNLIMITED = -1
_HOUR_MS = 3_600_000
_ASKED = ("cleanup.policy", "retention.ms", "retention.bytes")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a topic keeps, brokers' defaults included.

    Attributes:
        policy: `cleanup.policy`.
        retention_ms: -1: without end.
        retention_bytes: of one partition; -1: without end.
    """

    policy: str = "delete"
    retention_ms: int = UNLIMITED
    retention_bytes: int = UNLIMITED

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
    policy, milliseconds, size = (answer.get(name, {}).get("value") for name in _ASKED)
    unlimited = str(UNLIMITED)
    return Limits(str(policy or "delete"), int(milliseconds or unlimited), int(size or unlimited))


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
