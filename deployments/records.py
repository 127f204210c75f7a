"""The registry as work in the background asks it: in a thread, and again until it answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from app.bundles.registry import Promotion, Registry
from app.errors import Conflict, MantaError, NotFound, RegistryUnavailable

logger = logging.getLogger(__name__)

RETRY_S = 1.0

Asked = ParamSpec("Asked")
Told = TypeVar("Told")


class Records:
    """What has happened must be told, however long the registry is away.

    Attributes:
        registry: for questions that may fail.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def ask(self, work: Callable[Asked, Told], *args: Asked.args, **kwargs: Asked.kwargs) -> Told:
        """What `work` returns, in a thread, once the registry answers."""
        return await self.insist(lambda: asyncio.to_thread(work, *args, **kwargs))

    async def insist(self, attempt: Callable[[], Awaitable[Told]]) -> Told:
        """The first attempt that succeeds; raises errors that say something else than that nobody answers."""
        while True:
            try:
                return await attempt()
            except Exception as error:
                if isinstance(error, MantaError) and not isinstance(error, RegistryUnavailable):
                    raise
                logger.warning("the registry does not answer, asking again: %s", error)
            await asyncio.sleep(RETRY_S)

    async def note(self, promotion: str, **changes: Any) -> Promotion | None:
        """`Registry.update_promotion` until it is done. None: the promotion has ended otherwise meanwhile."""
        try:
            return await self.ask(self.registry.update_promotion, promotion, **changes)
        except (Conflict, NotFound) as error:
            logger.warning("not noted (%s): %s", ", ".join(f"{name} {value}" for name, value in changes.items()), error)
            return None
