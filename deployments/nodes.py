"""What the state writers of other nodes have applied, as their supervisor says: one short question at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

from deployments.cluster import NAMESPACE
from deployments.node_actors import SUPERVISOR

# How long a look at the cluster's nodes holds.
NODES_S = 5.0
# Whoever asks waits 1 or 2 s in all.
ASK_S = 0.8
UNKNOWN = "(the cluster does not say which there are)"

# Node to topic to partition to next offset that is not applied there.
Applied = Mapping[str, Mapping[str, Mapping[int, int]]]
Status = Sequence[Mapping[str, Any]]


class OtherNodes:
    """Belongs to one event loop. All who wait share one question, so that one that hangs holds one thread."""

    def __init__(
        self,
        look: Callable[[], Sequence[str]] | None = None,
        status: Callable[[], Awaitable[Status]] | None = None,
    ) -> None:
        """Args:
        look: ids of the other living nodes; runs in a thread.
        status: of every node's writer, as `StateSupervisor.status`.
        """
        self._look, self._status = look or _others, status or self._of_supervisor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manta-nodes")
        self._nodes: Sequence[str] = (UNKNOWN,)
        self._looked = -NODES_S
        self._asking: asyncio.Task[Applied] | None = None

    async def applied(self) -> Applied:
        """Of the other nodes; nothing on one machine. A node that is not known about after `ASK_S` has nothing."""
        if not self._nodes and time.monotonic() - self._looked < NODES_S:
            return {}
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, _: "asyncio.Task[Applied]") -> None:
        self._asking = None

    async def _ask(self) -> Applied:
        try:
            async with asyncio.timeout(ASK_S):
                if time.monotonic() - self._looked >= NODES_S:
                    self._nodes = await self._in_thread(self._look)
                    self._looked = time.monotonic()
                found = await self._status() if self._nodes else ()
        except (RayError, ValueError, TimeoutError):
            return {node: {} for node in self._nodes}
        return {one["node"]: one.get("offsets", {}) for one in found if one["node"] in self._nodes}

    async def _of_supervisor(self) -> Status:
        supervisor = await self._in_thread(lambda: ray.get_actor(SUPERVISOR, NAMESPACE))
        found: Status = await supervisor.status.remote()
        return found

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _others() -> Sequence[str]:
    here = ray.get_runtime_context().get_node_id()
    return [str(node["NodeID"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
