"""Which node has which shard: spread evenly, staying where they are, moving when a node dies or another one joins."""

from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

GRACE_S = 5.0  # by then every gateway has heard that a shard has moved

Node: TypeAlias = str
# shown: it answers; catching up: not yet; blocked: another process holds its database (a disk that nodes share)
Condition = Literal["shown", "catching up", "blocked"]
Said: TypeAlias = Mapping[Node, Mapping[int, Condition]]


def spread(shards: int, nodes: Collection[Node], held: Mapping[int, Node]) -> dict[int, Node]:
    """Shard → node, as even as can be with the fewest moves from where they are held."""
    if not nodes:
        return {}
    found = {shard: held[shard] for shard in range(shards) if held.get(shard) in nodes}
    load = {node: [shard for shard, at in found.items() if at == node] for node in sorted(nodes)}
    for shard in range(shards):
        if shard not in found:
            load[min(load, key=lambda node: len(load[node]))].append(shard)
    while True:
        least, most = (choose(load, key=lambda node: len(load[node])) for choose in (min, max))
        if len(load[most]) - len(load[least]) < 2:
            return {shard: node for node, those in load.items() for shard in those}
        load[least].append(load[most].pop())


class ShardMap:
    """Where the shards are to be, and where they are read: a shard that moves is read where it was until it has
    caught up where it goes.

    Attributes:
        owners: shard → the node that is asked for it.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._wanted: dict[int, Node] = {}
        self._leaving: dict[tuple[int, Node], float] = {}
        self.owners: dict[int, Node] = {}

    def look(self, nodes: Collection[Node], said: Said, now: float) -> dict[Node, set[int]]:
        """What each node is to keep from now on.

        Args:
            nodes: those that live.
            said: what each says of the shards that it keeps.
            now: seconds, monotonic.
        """
        # Whoever keeps the map has just been started: where they are, the nodes know
        held = self._wanted or {shard: node for node, those in said.items() for shard in those}
        self._wanted = spread(self._shards, nodes, held)
        for shard, node in self._wanted.items():
            before, condition = self.owners.get(shard), said.get(node, {}).get(shard)
            if before not in nodes or before is None:
                self.owners[shard] = node
            elif before != node and condition in ("shown", "blocked"):
                self.owners[shard] = node
                if condition == "shown":
                    self._leaving[shard, before] = now + GRACE_S
        self._leaving = {place: until for place, until in self._leaving.items() if until > now}
        keep: dict[Node, set[int]] = {node: set() for node in nodes}
        for shard, node in (*self._wanted.items(), *self.owners.items(), *self._leaving):
            if node in keep:
                keep[node].add(shard)
        return keep
