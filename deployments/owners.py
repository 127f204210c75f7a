"""Which node has which shard, as a gateway hears it, and asking there: one call a shard and micro-batch."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

from app.errors import StateUnavailable
from app.state.owners import Looked
from app.state.sharded import ShardedState
from deployments.cluster import NAMESPACE
from deployments.node_actors import SUPERVISOR, WRITER_PREFIX

_LOOK_S = 1.0
_ASK_S = 1.0

log = logging.getLogger("manta.state")


class ShardOwners:
    """`app.state.sharded.Owners` on Ray. Belongs to one event loop.

    Attributes:
        errors: shards that could not be read when they were last asked for their position, and why.
        heard: whether every shard could be read once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manta-owners")
        self._owners: dict[int, str] = {}
        self._writers: dict[str, Any] = {}
        self.errors: dict[int, str] = {}
        self.heard = False

    async def look(self, shard: int, keys: Sequence[bytes], /) -> Looked:
        """As `Owners.look`."""
        node = self._owners.get(shard)
        if node is None:
            raise StateUnavailable(f"shard {shard}: found no owner, wanted a node that has it")
        try:
            said: Looked | str = await (await self._writer(node)).look.remote(shard, list(keys))
        except Exception as error:  # whatever Ray says of an actor that died or moves
            self._writers.pop(node, None)
            why = f"shard {shard}: its owner, node {node[:8]}, does not answer ({type(error).__name__})"
            raise StateUnavailable(why) from None
        if isinstance(said, str):
            raise StateUnavailable(said)
        return said

    async def follow(self, state: ShardedState, shards: int) -> None:
        """Keeps up with who owns what, and with the watermarks of other nodes' shards; never returns."""
        while True:
            try:
                await self.refresh(state, shards)
            except Exception:
                log.exception("the owners of shards could not be looked at; trying again")
            await asyncio.sleep(_LOOK_S)

    async def refresh(self, state: ShardedState, shards: int) -> None:
        """One look."""
        try:
            async with asyncio.timeout(_ASK_S):
                supervisor = await self._in_thread(lambda: ray.get_actor(SUPERVISOR, NAMESPACE))
                self._owners = await supervisor.owners.remote()
        except (RayError, ValueError, TimeoutError) as error:
            log.warning("the owners of shards are not known anew: %s", type(error).__name__)
        here = ray.get_runtime_context().get_node_id()
        mine = [shard for shard, node in self._owners.items() if node == here]
        if state.here != frozenset(mine):
            await self._in_thread(lambda: state.keep(mine))  # a replica that is closed removes its files
        found = await asyncio.gather(*(self._error(state, shard) for shard in range(shards)))
        self._note({shard: error for shard, error in enumerate(found) if error is not None})
        self.heard = self.heard or not self.errors

    def _note(self, errors: dict[int, str]) -> None:
        for shard in sorted(errors.keys() - self.errors.keys()):
            log.warning("a shard cannot be read: %s", errors[shard])
        for shard in sorted(self.errors.keys() - errors.keys()):
            log.warning("shard %d can be read again", shard)
        self.errors = errors

    async def _error(self, state: ShardedState, shard: int) -> str | None:
        if shard in state.here:
            return state.failing().get(shard)
        try:
            await state.hear(shard, _ASK_S)
        except StateUnavailable as error:
            return str(error)
        return None

    async def _writer(self, node: str) -> Any:
        if node not in self._writers:
            self._writers[node] = await self._in_thread(lambda: ray.get_actor(WRITER_PREFIX + node[:8], NAMESPACE))
        return self._writers[node]

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
