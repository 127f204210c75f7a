"""A shard that is read on this node: one that cannot be followed fails those alone who want it."""

import time
from collections.abc import Sequence
from pathlib import Path

from app.errors import StateUnavailable
from app.state.joining import Found
from app.state.replica import StateReplica
from app.state.shares import shard

_AGAIN_S = 0.2  # a shard that cannot be read is not tried again before
_ANEW_S = 3.0  # a replica that has failed for this long is replaced


class ShardHere:
    """Its replica, and why it cannot be read if it cannot.

    Attributes:
        error: None: it can.
    """

    def __init__(self, home: Path, name: str, number: int, shards: int) -> None:
        self._home, self._name, self._share = home, name, shard(number, shards)
        self._failing: float | None = None
        self._tried, self._made = 0.0, 0
        self.error: StateUnavailable | None = StateUnavailable(
            f"{self._share}: found it not read yet, wanted a catch-up"
        )
        self._open()

    def _open(self) -> None:
        self._made += 1
        self.replica = StateReplica.of_home(self._home, f"{self._name}-{self._made}", self._share)

    def behind(self) -> bool:
        """As `StateReader.behind`; of one that cannot be read: whether it should be tried again."""
        if self.error is not None and time.monotonic() - self._tried < _AGAIN_S:
            return False
        return self.error is not None or self.replica.behind()

    def catch_up(self) -> None:
        """As `StateReader.catch_up`, but raises nothing: whoever looks is told."""
        if not self.behind():
            return
        self._tried = time.monotonic()
        try:
            self.replica.catch_up()
        except StateUnavailable as error:
            self.error, began = error, self._failing or self._tried
            self._failing = began
            if self._tried - began > _ANEW_S:
                self._failing = None
                self.replica.close()
                self._open()
            return
        self.error = self._failing = None

    def look(self, keys: Sequence[bytes]) -> list[Found]:
        """What the shard has of users and sessions (`app.state.joining`); raises StateUnavailable."""
        if self.error is not None:
            raise self.error
        return self.replica.look(keys)
