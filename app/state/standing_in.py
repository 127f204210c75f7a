"""Reads a shard for other nodes while its writer has no database open: the disk is full, or it may not be written.

Readers of the same node go on from the files then, so those of other nodes do too.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from app.events.schema import EVENTS
from app.state.owners import Looked
from app.state.replica import StateReplica
from app.state.shares import Share


class StandIn:
    """A reader that is opened when it is first asked. Every method may be called from any thread."""

    def __init__(self, home: Path, share: Share) -> None:
        self._home, self._share = home, share
        self._lock = threading.Lock()
        self._replica: StateReplica | None = None

    def look(self, keys: Sequence[bytes]) -> Looked:
        """What the shard has of users and sessions, as of its position.

        Raises:
            StateUnavailable: its position shows nothing, or it cannot be read.
        """
        with self._lock:
            replica = self._replica
            if replica is None:
                replica = StateReplica.of_home(self._home, f"writer-{os.getpid()}", self._share)
            if replica.behind():
                replica.catch_up()
            self._replica = replica
            return Looked(replica.look(keys), replica.as_of(), replica.since(), replica.offsets(EVENTS))

    def close(self) -> None:
        """The writer reads by itself again."""
        with self._lock:
            if self._replica is not None:
                self._replica.close()
                self._replica = None
