"""Micro-batches: requests of one surface and bundle that are there at the same moment are answered together.

Nothing waits while nothing is being worked on. While a batch is under way, newcomers gather until it ends, until what a
batch usually takes is over (so that one that hangs holds nobody up) or until the batch is full. Where some have
gathered as a batch ends, its own clients are given a moment to come back, at most half of what a batch takes:
otherwise two halves would take turns, each paying the full fixed cost of a batch.

Where the machine has more to do than it can, single requests cost too much: there they wait for each other, the longer
the more this thread has to wait for a core.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from deployments.starvation import Starvation

logger = logging.getLogger(__name__)

# Turns of the event loop from bytes in a socket to a request that asks: poll, parse and start its task, run it.
TURNS = 3
# However long batches take, nobody waits longer than this for one under way.
LONGEST_S = 0.025
# A thread that waits this share of its time for a core lets requests wait for each other as long as may be.
STARVED = 0.3

Asked = TypeVar("Asked")
Told = TypeVar("Told")

# Called with a request's place and its outcome as soon as that is known.
Deliver = Callable[[int, Told | Exception], None]
Work = Callable[[Sequence[Asked], Deliver[Told]], Awaitable[Sequence[Told | Exception]]]


class Batcher(Generic[Asked, Told]):
    """Gathers for one kind of work. Belongs to one event loop.

    Attributes:
        running: batches under way.
        batches, requests: how many so far; their ratio is the mean batch.
    """

    def __init__(
        self,
        work: Work[Asked, Told],
        *,
        max_batch: int,
        wait_s: float,
        starved: Callable[[], float] | None = None,
    ) -> None:
        """`work` answers as many as it is asked, in order; an exception in the answer is one request's own. It may
        deliver single outcomes before the others are known.

        Args:
            work: if it raises itself, each request of the batch that has no answer yet is tried once more alone.
            max_batch: requests a batch holds at most.
            wait_s: longest wait for clients to come back; while a batch is under way, the shortest.
            starved: share of its time in which this thread waits for a core; default `Starvation.share`.
        """
        self._work = work
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._starved = starved if starved is not None else Starvation().share
        self._waiting: list[tuple[Asked, asyncio.Future[Told]]] = []
        self._until = 0.0  # second of the loop to which the clients of the last batch are given time to come back
        self._expected = 0  # worth gathering: those that had gathered as the last batch ended, and that batch's own
        self._turns = 0  # of the loop until it is known who has gathered
        self._cost_s = 0.0  # what a batch takes, smoothed
        self._alarm: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.running = 0
        self.batches = 0
        self.requests = 0

    @property
    def busy(self) -> bool:
        """Whether a request waits or is being worked on."""
        return bool(self.running or self._waiting)

    def ask(self, request: Asked) -> "asyncio.Future[Told]":
        """The answer to come; raises what the work says is wrong with this request."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Told] = loop.create_future()
        self._waiting.append((request, answer))
        count = len(self._waiting)
        if count >= self._max_batch or (not self.running and count == self._expected):
            self._start()
        elif self._alarm is None and not self._turns:
            # Idle: only to the end of this turn of the loop, which gathers what the sockets hold already.
            wait_s = (
                min(max(self._wait_s, self._cost_s), LONGEST_S)
                if self.running
                else max(self._until - loop.time(), self._starved_s())
            )
            self._alarm = loop.call_later(wait_s, self._start) if wait_s > 0 else loop.call_soon(self._start)
        return answer

    def _starved_s(self) -> float:
        return LONGEST_S * min(self._starved() / STARVED, 1.0)

    def _start(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._expected, self._until = 0, 0.0
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        batch = [(request, answer) for request, answer in batch if not answer.done()]
        if not batch:
            return
        self.running += 1
        self.batches += 1
        self.requests += len(batch)
        loop = asyncio.get_running_loop()
        size, since = len(batch), loop.time()
        task = loop.create_task(self._run(batch))
        self._tasks.add(task)

        def ended(_: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            self.running -= 1
            self._cost_s += (loop.time() - since - self._cost_s) / 8
            self._go_on(size)

        task.add_done_callback(ended)

    def _go_on(self, answered: int) -> None:
        """A batch has ended. What came in while it ran lies in the sockets yet: the loop reads it in its next turns."""
        if self.running:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._turns = TURNS
        asyncio.get_running_loop().call_soon(self._look, answered)

    def _look(self, answered: int) -> None:
        """Once the sockets were read: those who have gathered begin when the clients of the last batch are back too."""
        loop = asyncio.get_running_loop()
        self._turns -= 1
        if self._turns:
            loop.call_soon(self._look, answered)
        elif self._alarm is None:
            self._expected = min(len(self._waiting) + answered, self._max_batch)
            wait_s = min(self._wait_s, self._cost_s / 2)
            self._until = loop.time() + wait_s
            if self._waiting:
                self._alarm = loop.call_later(wait_s, self._start)

    async def _run(self, batch: list[tuple[Asked, "asyncio.Future[Told]"]]) -> None:
        def deliver(place: int, reply: Told | Exception) -> None:
            _settle(batch[place][1], reply)

        try:
            told = await self._work([request for request, _ in batch], deliver)
        except Exception as error:
            await self._try_again(batch, error)
            return
        except asyncio.CancelledError:
            for _, answer in batch:
                answer.cancel()
            raise
        for (_, answer), reply in zip(batch, told, strict=True):
            _settle(answer, reply)

    async def _try_again(self, batch: list[tuple[Asked, "asyncio.Future[Told]"]], error: Exception) -> None:
        """The work raised: what was delivered stands; each of the others alone, so that only the bad one fails."""
        left = [one for one in batch if not one[1].done()]
        if not left:
            logger.error("a batch failed after all its answers were given", exc_info=error)
        elif len(batch) == 1:
            _settle(left[0][1], error)
        else:
            for one in left:
                await self._run([one])


def _settle(answer: "asyncio.Future[Told]", reply: Told | Exception) -> None:
    if answer.done():  # its client has gone
        return
    if isinstance(reply, Exception):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)
