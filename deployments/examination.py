"""The look at a bundle's files before anybody loads it: hashes, and before a promotion the smoke request."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from app.bundles.gate import SOUND, GateResult, examine
from app.bundles.manifest import verify
from app.bundles.registry import Promotion
from app.errors import GateRefused
from deployments.records import Records

Smoke = Callable[[Path], object]


class Examination:
    """Belongs to one event loop; the work is done in threads.

    Args:
        smoke: answers one request from a bundle's folder; raises where that fails. One at a time, for its memory.
    """

    def __init__(self, records: Records, smoke: Smoke | None) -> None:
        self._records, self._smoke = records, smoke
        self._smoking = asyncio.Lock()
        self._verifying: dict[str, asyncio.Task[GateResult]] = {}  # by bundle

    async def refusal(self, promotion: Promotion) -> GateRefused | None:
        """None: its files are sound. Either is on record when this returns."""
        folder = (await self._records.ask(self._records.registry.bundle, promotion.bundle)).folder
        result = await self._verified(promotion.bundle, folder)
        smoke = self._smoke
        if result.passed and promotion.kind == "promote" and smoke is not None:
            async with self._smoking:
                result = await asyncio.to_thread(examine, None, lambda: smoke(folder))
        if result.passed:
            await self._records.note(promotion.id, figures=promotion.figures | {SOUND: True})
            return None
        figures = promotion.figures | result.figures
        await self._records.note(promotion.id, state="refused", reason=result.reason, figures=figures)
        said = f"bundle {promotion.bundle} is refused: {result.reason}"
        return GateRefused(said, figures | {"promotion": promotion.id})

    async def _verified(self, bundle: str, folder: Path) -> GateResult:
        """Surfaces that go back together share one look at the hashes."""
        if bundle not in self._verifying:
            look = asyncio.get_running_loop().create_task(asyncio.to_thread(examine, lambda: verify(folder)))
            self._verifying[bundle] = look
            look.add_done_callback(lambda _: self._verifying.pop(bundle))
        return await asyncio.shield(self._verifying[bundle])
