"""What a gateway replica counts; where the counts live: `deployments.metric_files`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.chain.request import Answer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class GatewayMetrics:
    """What a gateway replica counts."""

    def __init__(self, replica: str) -> None:
        registry = CollectorRegistry()  # the files are what is read; this only keeps names unique
        self._replica = replica
        self._answers = Counter(
            "manta_requests",
            "Answered recommendation requests.",
            ("surface", "variant", "rung", "cause"),
            registry=registry,
        )
        self._problems = Counter(
            "manta_problems", "Recommendation requests that got a problem.", ("surface", "status"), registry=registry
        )
        self._latency = Histogram(
            "manta_request_seconds",
            "Time from parsed request to answer.",
            ("surface",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            "manta_batch_size",
            "Requests of a micro-batch.",
            ("surface",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self._stage = Histogram(
            "manta_stage_seconds",
            "Time of a stage, per batch.",
            ("surface", "stage"),
            buckets=SECONDS,
            registry=registry,
        )
        self._hits = Counter("manta_cache_hits", "Answers out of the answer cache.", ("surface",), registry=registry)
        self._events = Counter("manta_events", "Posted events.", ("outcome",), registry=registry)
        self._drops = Counter(
            "manta_impressions_dropped", "Impressions that were not sent, or never acknowledged.", registry=registry
        )
        self._gauges = Gauge(
            "manta_gateway",
            "Figures of a gateway replica: requests in flight and shed, impressions dropped, how far the state is.",
            ("replica", "figure"),
            multiprocess_mode="liveall",
            registry=registry,
        )
        self._live = Gauge(
            "manta_bundle_live",
            "1 for the bundle that a replica answers a surface from.",
            ("surface", "bundle"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._retention = Gauge(
            "manta_retention_hours",
            "Hours until the topic's retention (by time, by bytes) deletes what the reader has not read.",
            ("reader", "topic", "limit"),
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._unread = Gauge(
            "manta_unread_messages",
            "Offsets that the reader is behind the topic, as of the last measurement of retention.",
            ("reader", "topic"),
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._children: dict[tuple[str, ...], Counter] = {}
        self._observers: dict[tuple[object, ...], Callable[[float], None]] = {}
        self._shown: dict[str, str] = {}
        self._dropped = 0

    def answered(self, answers: Sequence[Answer]) -> None:
        """Counts the answers of a batch."""
        counts: dict[tuple[str, ...], int] = {}
        for answer in answers:
            reason = answer.degraded_reason
            key: tuple[str, ...] = (
                answer.surface,
                answer.variant,
                answer.degraded or "ranked",
                reason.cause if reason else "",
            )
            counts[key] = counts.get(key, 0) + 1
            if answer.cache_hit:
                self._hits.labels(answer.surface).inc()
            self._observe(self._latency, answer.surface)(answer.timings_ms["total"] / 1000)
        for key, count in counts.items():
            counter = self._children.get(key)
            if counter is None:
                counter = self._children[key] = self._answers.labels(*key)
            counter.inc(count)

    def batch(self, surface: str, size: int, timings_ms: dict[str, float]) -> None:
        """Counts one micro-batch and the stages it went through."""
        self._observe(self._batch, surface)(size)
        for stage, spent in timings_ms.items():
            if stage != "total":
                self._observe(self._stage, surface, stage)(spent / 1000)

    def problem(self, surface: str, status: int) -> None:
        self._problems.labels(surface, str(status)).inc()

    def events(self, outcome: str, count: int) -> None:
        """Counts events: `accepted`, `rejected` or `unavailable`."""
        if count:
            self._events.labels(outcome).inc(count)

    def dropped(self, impressions: int) -> None:
        """Counts dropped impressions. `impressions`: of this replica, so far."""
        self._drops.inc(max(0, impressions - self._dropped))
        self._dropped = max(impressions, self._dropped)

    def figure(self, name: str, value: float) -> None:
        """Sets a figure of this replica."""
        self._gauges.labels(self._replica, name).set(value)

    def retention(self, readers: Sequence[Mapping[str, Any]]) -> None:
        """Shows a measurement of `deployments.retention`; without a limit the hours are infinite."""
        for row in readers:
            for limit in ("time", "bytes"):
                hours = row[f"hours_by_{limit}"]
                self._retention.labels(row["reader"], row["topic"], limit).set(math.inf if hours is None else hours)
            self._unread.labels(row["reader"], row["topic"]).set(row["unread"])

    def live(self, live: dict[str, str]) -> None:
        """Shows what the replica answers from."""
        for surface, bundle in self._shown.items():
            if live.get(surface) != bundle:
                self._live.labels(surface, bundle).set(0)
        for surface, bundle in live.items():
            self._live.labels(surface, bundle).set(1)
        self._shown = dict(live)

    def _observe(self, histogram: Histogram, *labels: str) -> Callable[[float], None]:
        key = (id(histogram), *labels)
        observe = self._observers.get(key)
        if observe is None:
            observe = self._observers[key] = histogram.labels(*labels).observe
        return observe
