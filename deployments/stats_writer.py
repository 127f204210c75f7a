"""The one writer of each node's live figures, as a Ray actor beside the state's: at a lower priority than all else."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from prometheus_client import CollectorRegistry, Gauge

from app.settings import Settings
from app.stats.batch import TOPICS
from app.stats.writer import StatsWriterLoop
from deployments.metric_files import keep_in_files
from deployments.node_actors import NodeWriter

STATS_PREFIX = "manta-stats-writer-"
_NICE = 10  # figures may wait, answers and events may not
_SHOW_S = 2.0


class StatsMetrics:
    """What `/metrics` shows of the live figures; in every node's writer the same, so the highest counts."""

    def __init__(self) -> None:
        registry = CollectorRegistry()  # the files are what is read
        self._left_out = Gauge(
            "manta_stats_left_out",
            "What is in no figure: late events and impressions, reactions without an answer, repeats, bad messages.",
            ("reason",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._lag = Gauge(
            "manta_stats_lag_messages",
            "Messages that the live figures do not hold yet.",
            ("topic",),
            multiprocess_mode="livemax",
            registry=registry,
        )

    def show(self, status: Mapping[str, Any]) -> None:
        """Sets what `StatsWriterLoop.status` says."""
        for topic, messages in status["lag"].items():
            self._lag.labels(topic).set(messages)
        for name, count in status["late"].items():
            self._left_out.labels(f"late_{name}" if name in TOPICS else name).set(count)
        for name, count in status["totals"].items():
            if name not in TOPICS:
                self._left_out.labels(name).set(count)


class StatsWriter(NodeWriter):
    """One node's writer of live figures (`app.stats.writer`)."""

    def __init__(self, settings: Settings, home: str) -> None:
        os.nice(_NICE)
        pyarrow.set_cpu_count(1)
        keep_in_files(Path(home) / "metrics", f"stats-{os.getpid()}")
        self._metrics = StatsMetrics()
        self._stopped = threading.Event()
        super().__init__(StatsWriterLoop(settings, Path(home)), "stats-writer")
        threading.Thread(target=self._show, name="stats-metrics", daemon=True).start()

    def _show(self) -> None:
        while not self._stopped.wait(_SHOW_S):
            self._metrics.show(self._loop.status())

    def stop(self) -> None:
        """As `NodeWriter.stop`."""
        self._stopped.set()
        super().stop()
