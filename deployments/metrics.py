"""Counters of one replica, in files that every replica of the node reads, so that `/metrics` covers them all.

prometheus_client decides when it is imported whether its values live in files; here they always do.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

from app.chain.request import Answer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
# A replica touches its gauges every second; files older than this are of one that is gone.
GONE_S = 15.0
FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def keep_in_files(folder: Path, replica: str) -> None:
    """Makes every metric of this process live in `folder`. Before the first metric is made."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER] = str(folder)
    values.ValueClass = MultiProcessValue(process_identifier=lambda: replica)  # type: ignore[no-untyped-call]


def alive(folder: Path, replica: str) -> None:
    """Marks the gauges of this replica as current."""
    for file in folder.glob(f"gauge_live*_{replica}.db"):
        os.utime(file)


def exposition(folder: Path) -> bytes:
    """Prometheus text over all files of the folder; gauges of replicas that were killed are dropped."""
    horizon = time.time() - GONE_S
    for file in folder.glob("gauge_live*.db"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < horizon:
                file.unlink()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


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
        self._children: dict[tuple[str, ...], Counter] = {}
        self._observers: dict[tuple[object, ...], Callable[[float], None]] = {}
        self._shown: dict[str, str] = {}

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

    def figure(self, name: str, value: float) -> None:
        """Sets a figure of this replica."""
        self._gauges.labels(self._replica, name).set(value)

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
