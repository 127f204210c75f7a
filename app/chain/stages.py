"""The stages behind the chain, and how the chain waits for them within the deadlines of a whole batch."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.ranking.ranker import Ranker, Weights, weighted_score
from app.retrieval.query import Candidates, Query
from app.retrieval.sources import Source, retrieve

T = TypeVar("T")


class Stages(Protocol):
    """Retrieval and ranking, asked by bundle id, wherever they run.

    Attributes:
        immediate: the methods never suspend (in-process stages). The chain then needs no event loop.
    """

    immediate: bool

    async def retrieve(self, bundle_id: str, query: Query) -> Candidates:
        """Raises: StageStarting, StageOverloaded, or anything (cause `error`)."""
        ...

    async def score(self, bundle_id: str, features: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
        """float32 (R, F) -> float32 (R,), by a surface's weights of the objectives; raises as `retrieve`."""
        ...


class StagedBundle(Protocol):
    """What in-process stages need of a bundle."""

    @property
    def sources(self) -> Mapping[str, Source]: ...
    @property
    def ranker(self) -> Ranker | None: ...


class LocalStages:
    """The stages as objects of this process (topology `colocated`, and the in-process door)."""

    immediate: bool = True

    def __init__(self, bundles: Mapping[str, StagedBundle]) -> None:
        """`bundles`: by id; may change while this lives."""
        self._bundles = bundles

    async def retrieve(self, bundle_id: str, query: Query) -> Candidates:
        return retrieve(self._bundles[bundle_id].sources, query)

    async def score(self, bundle_id: str, features: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
        ranker = self._bundles[bundle_id].ranker
        if ranker is None:
            raise LookupError(f"bundle {bundle_id}: found no ranker, wanted one")
        return weighted_score(ranker, features, weights)


async def ask(
    call: Callable[[], Awaitable[T]],
    immediate: bool,
    deadlines: Sequence[float],
    late: Callable[[int], None],
    clock: Callable[[], float],
) -> T:
    """One call to a stage for a batch; each member waits only until its own deadline.

    Args:
        call: starts the stage.
        immediate: the stage never suspends; nobody can be late for it.
        deadlines: per member, seconds on `clock`.
        late: called with a member's place as soon as its deadline has passed; the others wait on.

    Raises:
        TimeoutError: every deadline has passed; the call was cancelled.
        Exception: what the stage raised.
    """
    if immediate:
        return await call()
    task: asyncio.Future[T] = asyncio.ensure_future(call())
    waiting = sorted(range(len(deadlines)), key=lambda place: deadlines[place], reverse=True)
    try:
        while waiting:
            left = deadlines[waiting[-1]] - clock()
            done, _ = await asyncio.wait({task}, timeout=max(left, 0.0))
            if done:
                return task.result()
            while waiting and deadlines[waiting[-1]] <= clock():
                late(waiting.pop())
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_forget)


def _forget(task: "asyncio.Future[Any]") -> None:
    """Looks at a cancelled call's exception, so that nobody warns that nobody did."""
    if not task.cancelled():
        task.exception()
