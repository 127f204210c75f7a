"""The writers of the shards that a node keeps: threads of its writer, begun and ended as the supervisor says."""

import threading
from collections.abc import Collection
from pathlib import Path

from app.settings import Settings
from app.state.shares import shard
from app.state.writer import StateWriterLoop
from deployments.node_actors import run_or_end
from deployments.shard_map import Condition


class ShardLoops:
    """Every method may be called from any thread."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home
        self._lock = threading.Lock()
        self._threads: dict[int, threading.Thread] = {}
        self.loops: dict[int, StateWriterLoop] = {}

    def keep(self, numbers: Collection[int] | None) -> dict[int, Condition]:
        """From now on writes these shards and no others (None: as before); how they are."""
        with self._lock:
            if numbers is not None:
                for number in self.loops.keys() - set(numbers):
                    self.loops.pop(number).stop()
                    self._threads.pop(number).join()
                for number in sorted(set(numbers) - self.loops.keys()):
                    self._begin(number)
            return {number: _condition(loop) for number, loop in self.loops.items()}

    def _begin(self, number: int) -> None:
        loop = StateWriterLoop(self._settings, self._home, shard(number, self._settings.state.shards))
        name = f"state-shard-{number}"
        thread = threading.Thread(target=run_or_end, args=(loop, name), name=name, daemon=True)
        self.loops = {**self.loops, number: loop}
        self._threads[number] = thread
        thread.start()


def _condition(loop: StateWriterLoop) -> Condition:
    return "shown" if loop.caught_up() else "blocked" if loop.blocked else "catching up"
