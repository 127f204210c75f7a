"""Micro-batching: no wait when idle, gathering under load, and one bad request harms only itself."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from deployments.batching import Batcher, Deliver
from deployments.starvation import Starvation


async def test_an_idle_request_does_not_wait() -> None:
    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        return [one * 2 for one in asked]

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=60.0)
    assert await asyncio.wait_for(batcher.ask(21), 1.0) == 42


async def test_what_is_there_together_is_answered_together_in_order() -> None:
    seen: list[list[int]] = []

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        seen.append(list(asked))
        return [one * 2 for one in asked]

    batcher: Batcher[int, int] = Batcher(work, max_batch=4, wait_s=0.001)
    assert await asyncio.gather(*(batcher.ask(one) for one in range(10))) == [one * 2 for one in range(10)]
    assert [one for batch in seen for one in batch] == list(range(10))
    assert max(map(len, seen)) == 4
    assert (batcher.batches, batcher.requests, batcher.running) == (len(seen), 10, 0)


async def test_newcomers_gather_while_a_batch_is_under_way() -> None:
    gate = asyncio.Event()
    seen: list[list[int]] = []

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        seen.append(list(asked))
        await gate.wait()
        return list(asked)

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=60.0)
    first = batcher.ask(0)
    await asyncio.sleep(0.01)
    others = []
    for one in (1, 2, 3):
        others.append(batcher.ask(one))
        await asyncio.sleep(0.005)
    assert seen == [[0]]
    gate.set()
    assert await asyncio.gather(first, *others) == [0, 1, 2, 3]
    assert seen == [[0], [1, 2, 3]]


async def test_two_halves_do_not_take_turns() -> None:
    """Eight clients, each asking again as soon as it is answered: soon they are answered together."""
    sizes: list[int] = []

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        sizes.append(len(asked))
        time.sleep(0.004)  # noqa: ASYNC251 - the work of a replica does hold its loop
        return list(asked)

    batcher: Batcher[int, int] = Batcher(work, max_batch=32, wait_s=0.002)

    async def client(number: int) -> None:
        await asyncio.sleep(0.003 * (number % 2))
        for _ in range(20):
            await batcher.ask(number)

    await asyncio.gather(*(client(number) for number in range(8)))
    assert sum(sizes[5:-5]) / len(sizes[5:-5]) >= 6


async def test_the_wait_is_bounded() -> None:
    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        if 0 in asked:
            await asyncio.sleep(30)
        return list(asked)

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=0.01)
    stuck = batcher.ask(0)
    await asyncio.sleep(0.005)
    assert await asyncio.wait_for(batcher.ask(1), 1.0) == 1
    stuck.cancel()


async def test_a_known_outcome_does_not_wait_for_its_batch() -> None:
    gate = asyncio.Event()

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        deliver(1, -1)
        await gate.wait()
        return list(asked)

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=0.01)
    slow, early = batcher.ask(7), batcher.ask(8)
    assert await asyncio.wait_for(early, 1.0) == -1
    assert not slow.done()
    gate.set()
    assert await slow == 7


async def test_one_bad_request_harms_only_itself() -> None:
    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int | Exception]:
        if 13 in asked:
            raise RuntimeError("poison")
        return [ValueError("odd") if one % 2 else one for one in asked]

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=0.01)
    told = await asyncio.gather(*(batcher.ask(one) for one in (2, 13, 4, 5)), return_exceptions=True)
    assert (told[0], told[2]) == (2, 4)
    assert isinstance(told[1], RuntimeError)
    assert isinstance(told[3], ValueError)


async def test_what_is_answered_is_not_worked_on_again(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[list[int]] = []

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        seen.append(list(asked))
        for place, one in enumerate(asked):
            if one != 3 or len(asked) == 1:
                deliver(place, one * 2)
        raise RuntimeError("after the answers")

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=0.01)
    assert await asyncio.gather(*(batcher.ask(one) for one in (1, 2, 3))) == [2, 4, 6]
    assert await batcher.ask(7) == 14
    assert seen == [[1, 2, 3], [3], [7]]
    assert "after all its answers were given" in caplog.text


async def test_a_client_that_has_gone_costs_nothing() -> None:
    seen: list[int] = []

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        seen.extend(asked)
        return list(asked)

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=0.01)
    gone, stays = batcher.ask(1), batcher.ask(2)
    gone.cancel()
    assert await stays == 2
    assert seen == [2]
    with pytest.raises(asyncio.CancelledError):
        await gone


@pytest.mark.parametrize(("starved", "batches"), [(0.0, [[0], [1]]), (1.0, [[0, 1]])], ids=["idle", "starved"])
async def test_lone_requests_wait_for_each_other_only_where_the_machine_is_full(
    starved: float, batches: list[list[int]]
) -> None:
    seen: list[list[int]] = []

    async def work(asked: Sequence[int], deliver: Deliver[int]) -> list[int]:
        seen.append(list(asked))
        return list(asked)

    batcher: Batcher[int, int] = Batcher(work, max_batch=8, wait_s=0.0, starved=lambda: starved)
    first = batcher.ask(0)
    for _ in range(5):
        await asyncio.sleep(0)  # turns of the loop, no time
    second = batcher.ask(1)
    assert [await first, await second] == [0, 1]
    assert seen == batches


def test_a_thread_that_shares_its_core_is_starved() -> None:
    mine: set[int] = {min(os.sched_getaffinity(0))}
    others = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {mine})\nwhile True: pass"])
        for _ in range(3)
    ]
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, mine)
        starvation, share, deadline = Starvation(), 0.0, time.monotonic() + 20
        while share < 0.3 and time.monotonic() < deadline:
            share = starvation.share()
    finally:
        os.sched_setaffinity(0, before)
        for other in others:
            other.kill()
            other.wait()
    assert share >= 0.3
