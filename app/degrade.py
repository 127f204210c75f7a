"""When a stage is slow or down: causes, circuit breakers, and how much of a deadline each stage may use.

The ladder itself (ranked, retrieval order, cache, popular) is walked by `app.recommend`.
"""

import time
from collections.abc import Callable
from typing import Literal

from app.errors import MantaError

Cause = Literal["timeout", "error", "circuit_open", "starting", "overload"]

FAILURES_TO_OPEN = 5
OPEN_S = 1.0
SAY_S = 10.0
# What is kept back of a deadline for the steps after the last stage.
RESERVE_S = 0.004
RESERVE_SHARE = 0.1


class StageStarting(MantaError):
    """The stage has no replica yet."""


class StageOverloaded(MantaError):
    """The stage's queue is full."""


class StageLeftAlone(MantaError):
    """The stage is not asked for a moment: its circuit is open."""


def cause_of(error: BaseException) -> Cause:
    """The contract's cause of a failed stage."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, StageLeftAlone):
        return "circuit_open"
    if isinstance(error, StageStarting):
        return "starting"
    return "overload" if isinstance(error, StageOverloaded) else "error"


def usable_until(arrived: float, timeout_ms: int) -> float:
    """The second (same clock as `arrived`) by which the stages must be done, so that the answer is in time."""
    timeout_s = timeout_ms / 1000
    return arrived + timeout_s - min(RESERVE_S, RESERVE_SHARE * timeout_s)


class Breaker:
    """Opens after FAILURES_TO_OPEN failures in a row; after OPEN_S one trial at a time until one succeeds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_again = 0.0  # while open: when the next trial may go

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES_TO_OPEN

    def allows(self) -> bool:
        """Whether to try the stage now. While open, True once in OPEN_S: that call is the trial."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._closed_again:
            return False
        self._closed_again = now + OPEN_S
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self.is_open:
            self._closed_again = self._clock() + OPEN_S


class Breakers:
    """One breaker a stage; shared by all chains that ask the same stages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.retrieve = Breaker(clock)
        self.rank = Breaker(clock)
        self._clock, self._said = clock, -SAY_S

    def is_news(self) -> bool:
        """Whether to say that the state cannot be read; once in SAY_S."""
        if (now := self._clock()) - self._said < SAY_S:
            return False
        self._said = now
        return True

    def of(self, stage: Literal["retrieve", "rank"]) -> Breaker:
        """The breaker of a stage."""
        return self.retrieve if stage == "retrieve" else self.rank
