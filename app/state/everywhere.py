"""What the databases of all nodes say of an erasure. Nodes of one machine may share a disk: one of them has a database
open, the others wait for it, and it is done once the one that has it says so.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from app.erasure.places import Known
from app.state.erasures import HeldElsewhere, NodeErasures, known_together

NOTHING = Known((), False)


class Said(NamedTuple):
    """What the databases of one node say.

    Attributes:
        known: what they know together of the user.
        did: those that answered, each by the number of its shard (below zero: the node's own).
        held: those that another process has open, and which were not asked therefore.
    """

    known: Known
    did: frozenset[int]
    held: frozenset[int]


def ask_each(databases: Mapping[int, NodeErasures], ask: Callable[[NodeErasures], Known | None]) -> Said:
    """Asks one after the other; raises what any of them does, but HeldElsewhere."""
    did: dict[int, Known] = {}
    for number, one in databases.items():
        try:
            did[number] = ask(one) or NOTHING
        except HeldElsewhere:
            continue
    return Said(known_together(list(did.values())), frozenset(did), frozenset(databases.keys() - did.keys()))


def held_by_nobody(said: Mapping[str, Said], machine_of: Mapping[str, str]) -> dict[str, str]:
    """Node → why it is not done with: no other node of its machine has done a database that it found held."""
    late: dict[str, str] = {}
    for node, one in said.items():
        beside = [other.did for name, other in said.items() if machine_of.get(name) == machine_of.get(node)]
        if left := sorted(one.held.difference(*beside)):
            names = ", ".join("its own" if number < 0 else f"shard {number}" for number in left)
            late[node] = (
                f"database ({names}): found it open in a process that is no writer of this system, wanted it closed"
            )
    return late
