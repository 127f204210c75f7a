"""The writers of each node's state and figures, as Ray actors: pinned, restarted by Ray, kept by one supervisor."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from app.erasure.places import Subject
from app.errors import MantaError, StateUnavailable
from app.events.schema import EVENTS
from app.settings import Settings
from app.state.erasures import NodeErasures
from app.state.everywhere import Said, ask_each, held_by_nobody
from app.state.owners import Looked
from app.state.position import gone_shards
from app.state.shares import shard
from app.state.states_here import erase_left_behind
from app.state.writer import StateWriterLoop
from deployments.cluster import NAMESPACE
from deployments.node_actors import SUPERVISOR, WRITER_PREFIX, NodeWriter, pinned
from deployments.rebuild_state import rebuild_apart
from deployments.retention import RetentionWatch
from deployments.shard_loops import ShardLoops
from deployments.shard_map import Condition, ShardMap
from deployments.stats_writer import STATS_PREFIX, StatsWriter

_NICE = 5  # answers come first; then what the next ones know
_LOOK_S = 1.0
_ANSWER_S = 2.0
_WORK_S = 90.0
_STATUS_S = 0.5  # a writer that says nothing must not keep those who ask from hearing of the others in time
_STATS_AFTER_S = 5.0  # a system that starts has better things to do, and figures miss nothing

log = logging.getLogger("manta.state")


class StateWriter(NodeWriter):
    """One node's writer of the state (`app.state.writer`), and the watch over what retention leaves it."""

    def __init__(self, settings: Settings, home: str) -> None:
        if settings.state.placement == "node":  # sharded, it answers the requests of other nodes
            os.nice(_NICE)
        pyarrow.set_cpu_count(1)  # what the actor has reserved
        loop = StateWriterLoop(settings, Path(home))
        self._settings, self._home = settings, Path(home)
        self._writing, self._erasures = loop, loop.erasures
        self._shards = ShardLoops(settings, Path(home))
        super().__init__(loop, "state-writer")
        self._retention = RetentionWatch(settings, Path(home))

    def known(self, subject: Subject, shards: list[int]) -> Said | str:
        """As `NodeErasures.known`, of the node's database and the shards that it keeps; an error as text."""
        try:
            return ask_each(self._all_erasures(shards), lambda one: one.known(subject.user_id, subject.ends))
        except MantaError as error:
            return str(error)

    def erase(self, subject: Subject, shards: list[int]) -> Said | str:
        """As `NodeErasures.erase`, of the node's database and the shards that it keeps or kept; an error as text."""
        try:
            said = ask_each(self._all_erasures(shards), lambda one: one.erase(subject))
            erase_left_behind(self._settings, self._home, subject, self._shards.loops.keys())
        except MantaError as error:
            return str(error)
        return said

    def _all_erasures(self, shards: list[int]) -> dict[int, NodeErasures]:
        """Of all that is written here; at least of these shards (a writer that was just started has none)."""
        loops = self._shards.loops
        if missing := [str(number) for number in shards if number not in loops]:
            raise StateUnavailable(f"shards {', '.join(missing)}: found no writer yet, wanted it to run")
        return {-1: self._erasures, **{number: loop.erasures for number, loop in loops.items()}}

    def keep(self, shards: list[int] | None) -> dict[int, Condition]:
        """As `ShardLoops.keep`."""
        return self._shards.keep(shards)

    def look(self, shard: int, keys: list[bytes]) -> Looked | str:
        """As `StateWriterLoop.look` of a shard; an error as text."""
        loop = self._shards.loops.get(shard)
        if loop is None:
            return f"shard {shard}: found it gone to another node, wanted it here"
        try:
            return loop.look(keys)
        except MantaError as error:
            return str(error)

    def rebuild(self) -> dict[str, Any] | str:
        """Makes what is written on this node anew from the lake (`deployments.rebuild_state`); an error as text.

        Shards that have gone to other nodes too: they may come back. Not what the writer of another node holds.
        """
        section, loops = self._settings.state, self._shards.loops
        gone = [shard(number, section.shards) for number in gone_shards(self._home) if number < section.shards]
        wanted = [loop.share for loop in (self._writing, *loops.values()) if not loop.blocked]
        wanted += [share for share in gone if share.shard not in loops and section.placement == "sharded"]
        try:
            return rebuild_apart(self._settings, self._home, wanted)
        except MantaError as error:
            return str(error)

    def status(self) -> dict[str, Any]:
        """As the loop's, with the node; `shards`: number → as the shard's loop, and `lag` is of all."""
        found = super().status()
        if shards := {number: loop.status() for number, loop in self._shards.loops.items()}:
            for one in shards.values():
                for topic, messages in one["lag"].items():
                    found["lag"][topic] = found["lag"].get(topic, 0) + messages
            found["shards"] = shards
            found["error"] = found["error"] or next((one["error"] for one in shards.values() if one["error"]), None)
        return found

    def stop(self) -> None:
        """As `NodeWriter.stop`."""
        self._retention.stop()
        self._shards.keep(())
        super().stop()


class StateSupervisor:
    """Keeps one writer on every living node, and one of live figures beside it."""

    def __init__(self, settings: Settings, home: str) -> None:
        """Begins to keep them."""
        self._settings, self._home = settings, home
        self._began = time.monotonic()
        self._writers: dict[str, ActorHandle] = {}
        self._stats_writers: dict[str, ActorHandle] = {}
        sharded = settings.state.placement == "sharded"
        self._shards = ShardMap(settings.state.shards) if sharded else None
        self._kept: dict[str, set[int]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="state-supervisor", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except Exception:
                log.exception("the state writers could not be looked after; trying again")
            self._stopped.wait(_LOOK_S)

    def _look(self) -> None:
        """Starts writers on new nodes, forgets those of nodes that have gone, replaces those that ended for good."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._keep_on(alive, self._writers, WRITER_PREFIX, StateWriter, 0.1)
        if self._shards is not None:
            self._place(self._shards)
        if self._settings.stats.enabled and time.monotonic() - self._began > _STATS_AFTER_S:
            self._keep_on(alive, self._stats_writers, STATS_PREFIX, StatsWriter, 0.0)

    def _place(self, shards: ShardMap) -> None:
        """Tells each node which shards it keeps."""
        self._kept = shards.look(self._writers.keys(), self._ask_writers({}), time.monotonic())
        self._ask_writers(self._kept)

    def _ask_writers(self, keep: Mapping[str, set[int]]) -> dict[str, dict[int, Condition]]:
        """What each node says of its shards; with nothing named it only answers."""
        asked = {
            node: writer.keep.remote(sorted(keep[node]) if node in keep else None)
            for node, writer in self._writers.items()
        }
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        said: dict[str, dict[int, Condition]] = {}
        for node, ref in asked.items():
            with contextlib.suppress(RayError):
                if ref in ready:
                    said[node] = ray.get(ref)
        return said

    def owners(self) -> dict[int, str]:
        """Shard → the node that is asked for it; empty where the state is not sharded."""
        return dict(self._shards.owners) if self._shards is not None else {}

    def _keep_on(
        self, nodes: set[str], writers: dict[str, ActorHandle], prefix: str, actor: type[NodeWriter], num_cpus: float
    ) -> None:
        for node in [node for node in writers if node not in nodes]:
            ray.kill(writers.pop(node))
        for node in nodes:
            name = prefix + node[:8]
            if node not in writers or _gone(name):
                writers[node] = pinned(actor, name, node, num_cpus, self._settings, self._home)

    def status(self) -> list[dict[str, Any]]:
        """`StateWriter.status` of each node; a writer that does not answer: its node, name and state `starting`."""
        asked = {node: writer.status.remote() for node, writer in dict(self._writers).items()}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=_STATUS_S)
        return [{"node": node, "name": WRITER_PREFIX + node[:8], **_answer(ref)} for node, ref in asked.items()]

    def ask(self, method: str, subject: Subject) -> dict[str, Said | str]:
        """What each node's writer says to `known` or `erase`; of one that is not done with: why, as text."""
        kept = self._kept
        asked = {
            node: getattr(writer, method).remote(subject, sorted(kept.get(node, ())))
            for node, writer in dict(self._writers).items()
        }
        said: dict[str, Said | str] = {node: _told(ref) for node, ref in asked.items()}
        machines = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        said |= held_by_nobody({node: one for node, one in said.items() if isinstance(one, Said)}, machines)
        told = {WRITER_PREFIX + node[:8]: one for node, one in said.items()}
        everywhere = set().union(*(kept[node] for node in asked if node in kept))
        if self._shards is not None and len(everywhere) < self._settings.state.shards:
            told["shards"] = "found shards without a node, wanted each to have one"
        return told

    def stop(self) -> None:
        """Ends all writers, and keeps none any more."""
        self._stopped.set()
        self._thread.join()
        for writer in (*self._writers.values(), *self._stats_writers.values()):
            with contextlib.suppress(RayActorError, GetTimeoutError):
                ray.get(writer.stop.remote(), timeout=_ANSWER_S)
            ray.kill(writer)
        self._writers.clear()
        self._stats_writers.clear()


def ensure_state_writers(settings: Settings, home: Path) -> ActorHandle:
    """The supervisor, started if it is not there; Ray must be joined. `settings` name the broker's address."""
    supervisor = ray.remote(StateSupervisor).options(
        name=SUPERVISOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=3,
        max_concurrency=4,
        num_cpus=0,
    )
    return supervisor.remote(settings, str(home))


def state_status(timeout_s: float = 5.0) -> list[dict[str, Any]]:
    """Status of every node's writer; empty where no supervisor runs or it does not answer."""
    try:
        supervisor = ray.get_actor(SUPERVISOR, NAMESPACE)
        found: list[dict[str, Any]] = ray.get(supervisor.status.remote(), timeout=timeout_s)
    except (ValueError, RayActorError, GetTimeoutError):
        return []
    return found


def state_lag(timeout_s: float = 5.0) -> dict[str, int]:
    """Topic → messages that the slowest node has not applied yet; of shards, all of them."""
    lag: dict[str, int] = {}
    for status in state_status(timeout_s):
        for topic, messages in status.get("lag", {}).items():
            apart = topic == EVENTS and "shards" in status
            lag[topic] = lag.get(topic, 0) + messages if apart else max(lag.get(topic, 0), messages)
    return lag


def stop_state_writers(timeout_s: float = 10.0) -> None:
    """Ends the supervisor and every writer, where there are any."""
    try:
        supervisor = ray.get_actor(SUPERVISOR, NAMESPACE)
    except ValueError:
        return
    with contextlib.suppress(RayActorError, GetTimeoutError):
        ray.get(supervisor.stop.remote(), timeout=timeout_s)
    ray.kill(supervisor)


def _gone(name: str) -> bool:
    """Whether an actor has ended for good (one that Ray is restarting still has its name)."""
    try:
        ray.get_actor(name, NAMESPACE)
    except ValueError:
        return True
    return False


def _answer(ref: "ray.ObjectRef[dict[str, Any]]") -> dict[str, Any]:
    try:
        found: dict[str, Any] = ray.get(ref, timeout=0)
    except (RayError, GetTimeoutError):
        return {"state": "starting"}
    return found


def _told(ref: "ray.ObjectRef[Any]") -> Any:
    try:
        return ray.get(ref, timeout=_WORK_S)
    except (RayError, GetTimeoutError) as error:
        return f"found no answer ({type(error).__name__}), wanted one within {_WORK_S:.0f} s"
