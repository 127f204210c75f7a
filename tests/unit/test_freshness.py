"""Catching up: shared by all who wait, given up after its time, and healed by the first that succeeds."""

import asyncio
import threading

import pytest

from app.errors import StateUnavailable
from deployments.freshness import Follower


class Writer:
    """A state that is behind by what `position` says; catching up can be held or made to fail."""

    def __init__(self) -> None:
        self.position = 0
        self.seen = 0
        self.catch_ups = 0
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def behind(self) -> bool:
        return self.seen != self.position

    def catch_up(self) -> None:
        wanted = self.position
        self.go.wait(5)
        if self.error:
            raise self.error
        self.catch_ups += 1
        self.seen = wanted


async def test_waiting_requests_share_catch_ups() -> None:
    state, moved = Writer(), []
    follower = Follower(state, timeout_s=1.0, moved=lambda: moved.append(state.seen))
    state.position = 1
    state.go.clear()
    first = [asyncio.create_task(follower.refresh()) for _ in range(10)]
    await asyncio.sleep(0.02)
    state.position = 2  # the running catch-up has read the position already: who comes now needs another
    late = [asyncio.create_task(follower.refresh()) for _ in range(10)]
    await asyncio.sleep(0.02)
    state.go.set()
    await asyncio.gather(*first, *late)
    assert (state.seen, state.catch_ups, moved) == (2, 2, [1, 2])
    assert not follower.behind()


async def test_a_hanging_catch_up_is_given_up_and_heals() -> None:
    state = Writer()
    follower = Follower(state, timeout_s=0.4, moved=lambda: None)
    state.position = 1
    state.go.clear()
    with pytest.raises(StateUnavailable, match=r"within 0\.4 s"):
        await follower.refresh()
    with pytest.raises(StateUnavailable):
        await asyncio.wait_for(follower.refresh(), 0.3)  # at once, while it hangs
    assert follower.broken_for() > 0
    state.go.set()
    async with asyncio.timeout(5):
        while follower.broken_for():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    state.position = 2
    await follower.refresh()
    assert state.seen == 2


async def test_a_failing_catch_up_is_tried_again_by_the_next_request() -> None:
    state = Writer()
    follower = Follower(state, timeout_s=1.0, moved=lambda: None)
    state.position = 1
    state.error = StateUnavailable("gone")
    for _ in range(2):
        with pytest.raises(StateUnavailable, match="gone"):
            await follower.refresh()
    assert follower.broken_for() > 0
    state.error = None
    await follower.refresh()
    assert (state.seen, follower.broken_for()) == (1, 0.0)
