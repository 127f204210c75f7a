"""The one writer of each node's live figures, as a Ray actor beside the state's: at a lower priority than all else."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import ray
from prometheus_client import CollectorRegistry, Gauge
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.settings import Settings
from app.stats.batch import TOPICS
from app.stats.writer import StatsWriterLoop
from deployments.cluster import NAMESPACE
from deployments.metric_files import keep_in_files

STATS_PREFIX = "manta-stats-writer-"
_NICE = 10  # figures may wait, answers and events may not
_SHOW_S = 2.0
_FAILED_S = 1.0  # before a failed writer gives way to the next: it does not spin

log = logging.getLogger("manta.stats")


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


class StatsWriter:
    """One node's writer: a thread does the work (`app.stats.writer`), the actor answers how it goes."""

    def __init__(self, settings: Settings, home: str) -> None:
        """Starts at once; waits for whoever still holds the database."""
        os.nice(_NICE)
        pyarrow.set_cpu_count(1)
        keep_in_files(Path(home) / "metrics", f"stats-{os.getpid()}")
        self._metrics = StatsMetrics()
        self._stopped = threading.Event()
        self._loop = StatsWriterLoop(settings, Path(home))
        self._thread = threading.Thread(target=self._run, name="stats-writer", daemon=True)
        self._thread.start()
        threading.Thread(target=self._show, name="stats-metrics", daemon=True).start()

    def _run(self) -> None:
        try:
            self._loop.run()
        except Exception:
            log.exception("the writer of live figures failed and is started anew")
            time.sleep(_FAILED_S)
            os._exit(1)  # Ray starts the actor again; offsets and figures are as of the last batch

    def _show(self) -> None:
        while not self._stopped.wait(_SHOW_S):
            self._metrics.show(self._loop.status())

    def status(self) -> dict[str, Any]:
        """As `StatsWriterLoop.status`, with the node."""
        return {"node": ray.get_runtime_context().get_node_id(), **self._loop.status()}

    def stop(self) -> None:
        """Ends the work and closes the database (`ray.kill` is safe too)."""
        self._stopped.set()
        self._loop.stop()
        self._thread.join()


def start_stats_writer(name: str, node: str, settings: Settings, home: str) -> ActorHandle:
    """The writer `name` on a node, started if it is not there."""
    writer = ray.remote(StatsWriter).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=4,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return writer.remote(settings, home)
