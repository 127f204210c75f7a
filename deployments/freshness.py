"""How a replica keeps up with the state writer: it catches up, in a thread, before it answers when it is behind.

All requests that wait share one catch-up. One that fails, or hangs for a second, makes the replica stop answering
(503) until one succeeds; a dead writer is not that, since then nothing is ahead of the replica.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from app.errors import StateUnavailable

logger = logging.getLogger(__name__)


class Behind(Protocol):
    """What is followed (`app.state.reader.StateReader`)."""

    def behind(self) -> bool: ...
    def catch_up(self) -> None: ...


class Follower:
    """Brings one replica up to the shared position. Belongs to one event loop."""

    def __init__(self, state: Behind, *, timeout_s: float, moved: Callable[[], None]) -> None:
        """`moved` runs on the loop after each catch-up that succeeded, before anybody who waited goes on."""
        self._state = state
        self._timeout_s = timeout_s
        self._moved = moved
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manta-catch-up")
        self._running: asyncio.Future[None] | None = None
        self._hung = False
        self._failing_since: float | None = None
        self._reason = ""
        self.catch_ups = 0

    def behind(self) -> bool:
        """Whether the writer has moved on; a memory read."""
        return self._state.behind()

    def broken_for(self) -> float:
        """Seconds since which catching up fails or hangs beyond its time; 0: it works, or nothing is ahead."""
        if self._failing_since is None or not self._state.behind():
            return 0.0
        return time.monotonic() - self._failing_since

    async def refresh(self) -> None:
        """Returns when everything that was published before the call is visible.

        Raises:
            StateUnavailable: the catch-up failed, or did not end in time.
        """
        if self._hung:
            raise StateUnavailable(self._reason)
        if self._running is not None:
            # It may have read the position before the last move: then one more, which starts after this call.
            await asyncio.shield(self._running)
            if not self._state.behind():
                return
        await asyncio.shield(self._running or self._begin())

    def _begin(self) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        shared: asyncio.Future[None] = loop.create_future()
        self._running = shared
        alarm = loop.call_later(self._timeout_s, self._late, shared)
        work = loop.run_in_executor(self._thread, self._state.catch_up)

        def ended(done: "asyncio.Future[None]") -> None:
            alarm.cancel()
            self._running = None
            self._hung = False
            self._settle(shared, done.exception())

        work.add_done_callback(ended)
        return shared

    def _late(self, shared: "asyncio.Future[None]") -> None:
        """The catch-up hangs: whoever waits is told, whoever comes is told at once, until it ends."""
        self._hung = True
        self._fail(shared, f"the replica did not catch up with the state within {self._timeout_s:g} s")

    def _settle(self, shared: "asyncio.Future[None]", error: BaseException | None) -> None:
        if error is None:
            try:
                self._moved()
            except Exception as failure:
                error = failure
        if error is not None:
            self._fail(shared, str(error))
            return
        self.catch_ups += 1
        if self._failing_since is not None:
            logger.warning("the state is followed again")
        self._failing_since = None
        if not shared.done():
            shared.set_result(None)

    def _fail(self, shared: "asyncio.Future[None]", reason: str) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            logger.error("the state cannot be followed: %s", reason)
        self._reason = reason
        if not shared.done():
            shared.set_exception(StateUnavailable(reason))
            shared.exception()  # looked at: nobody may be waiting
