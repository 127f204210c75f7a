"""Whether Ray's head still answers: a call to a dead one hangs for a minute, and then ends the process."""

import socket
import time

import ray

from app.errors import MantaError

PATIENCE_S = 15.0  # a head that is only restarted or busy is waited for


class Head:
    """The head of the connected Ray, asked at most once a second whether it takes connections."""

    def __init__(self, address: str | None = None) -> None:
        """`address`: HOST:PORT; None: that of the Ray that is connected."""
        self.address = address or str(ray.get_runtime_context().gcs_address)
        self.answers = True
        self._asked = self._heard = time.monotonic()

    def look(self, sweep: str) -> bool:
        """Whether it answers.

        Raises:
            MantaError: it has not for PATIENCE_S.
        """
        now = time.monotonic()
        if now - self._asked < 1.0:
            return self.answers
        self._asked = now
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
        except OSError:
            self.answers = False
        else:
            self.answers, self._heard = True, time.monotonic()
        if now - self._heard > PATIENCE_S:
            raise MantaError(
                f"sweep {sweep}: Ray's head at {self.address} is gone; finished trials stand in its journal: "
                f"`--resume {sweep}` goes on from there"
            )
        return self.answers
