"""The one writer of each node's live figures, as a Ray actor beside the state's: at a lower priority than all else."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.settings import Settings
from app.stats.writer import StatsWriterLoop
from deployments.cluster import NAMESPACE

STATS_PREFIX = "manta-stats-writer-"
_NICE = 10  # figures may wait, answers and events may not
_FAILED_S = 1.0  # before a failed writer gives way to the next: it does not spin

log = logging.getLogger("manta.stats")


class StatsWriter:
    """One node's writer: a thread does the work (`app.stats.writer`), the actor answers how it goes."""

    def __init__(self, settings: Settings, home: str) -> None:
        """Starts at once; waits for whoever still holds the database."""
        os.nice(_NICE)
        pyarrow.set_cpu_count(1)
        self._loop = StatsWriterLoop(settings, Path(home))
        self._thread = threading.Thread(target=self._run, name="stats-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run()
        except Exception:
            log.exception("the writer of live figures failed and is started anew")
            time.sleep(_FAILED_S)
            os._exit(1)  # Ray starts the actor again; offsets and figures are as of the last batch

    def status(self) -> dict[str, Any]:
        """As `StatsWriterLoop.status`, with the node."""
        return {"node": ray.get_runtime_context().get_node_id(), **self._loop.status()}

    def stop(self) -> None:
        """Ends the work and closes the database (`ray.kill` is safe too)."""
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
