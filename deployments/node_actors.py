"""Actors of which each node has one: pinned to it, one thread that does the work, started anew by Ray if it fails."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.settings import Settings
from deployments.cluster import NAMESPACE
from deployments.collector import rest_the_collector

SUPERVISOR = "manta-state-supervisor"  # the actor that keeps them
WRITER_PREFIX = "manta-state-writer-"
_FAILED_S = 1.0  # before a failed writer gives way to the next: its status can be read, and it does not spin

log = logging.getLogger("manta.writers")


class Loop(Protocol):
    """A writer's work: `run` blocks until `stop`, which any thread may call."""

    def run(self) -> None: ...

    def stop(self) -> None: ...

    def status(self) -> dict[str, Any]: ...


def run_or_end(loop: Loop, name: str) -> None:
    """Runs a loop; one that fails ends the process with it."""
    try:
        loop.run()
    except Exception:
        log.exception("the %s failed and is started anew", name)
        time.sleep(_FAILED_S)
        os._exit(1)  # Ray starts the actor again; what it writes is as of the last batch


class NodeWriter:
    """Runs a loop in a thread; the actor answers how it goes."""

    def __init__(self, loop: Loop, name: str) -> None:
        """Starts at once; the loop waits for whoever still holds its database."""
        self._loop = loop
        rest_the_collector()
        self._thread = threading.Thread(target=run_or_end, args=(loop, name), name=name, daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """As the loop's, with the node."""
        return {"node": ray.get_runtime_context().get_node_id(), **self._loop.status()}

    def stop(self) -> None:
        """Ends the work and closes the database (`ray.kill` is safe too)."""
        self._loop.stop()
        self._thread.join()


def pinned(actor: type, name: str, node: str, num_cpus: float, settings: Settings, home: str | Path) -> ActorHandle:
    """The actor of that name on a node, started if it is not there; it lives until it is killed."""
    options = ray.remote(actor).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=16,
        num_cpus=num_cpus,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return options.remote(settings, str(home))
