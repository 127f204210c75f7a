"""The look at a bundle's files before anybody loads it: hashes, and before a promotion the smoke request."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from app.bundles.gate import SOUND, examine, latency_judge
from app.bundles.manifest import verify
from app.bundles.quality import GateResult
from app.bundles.registry import BundleRow, Promotion
from app.errors import GateRefused
from app.settings import Settings
from deployments.records import Records

Smoke = Callable[[Path], object]


class Examination:
    """Belongs to one event loop; the work is done in threads.

    Args:
        smoke: answers from a bundle's folder and returns the milliseconds of CPU that takes; raises where that fails.
            One at a time, for its memory.
    """

    def __init__(self, records: Records, settings: Settings, smoke: Smoke | None) -> None:
        self._records, self._settings, self._smoke = records, settings, smoke
        self._smoking = asyncio.Lock()
        self._verifying: dict[str, asyncio.Task[GateResult]] = {}  # by bundle

    async def refusal(self, promotion: Promotion) -> GateRefused | None:
        """None: its files are sound. Either is on record when this returns."""
        row = await self._records.ask(self._records.registry.bundle, promotion.bundle)
        result = await self._verified(row)
        smoke = self._smoke
        if result.passed and promotion.kind == "promote" and smoke is not None:
            judge = None if promotion.force else latency_judge(self._settings, promotion.surfaces)
            async with self._smoking:
                result = await asyncio.to_thread(examine, None, lambda: smoke(row.folder), judge)
        if result.passed:
            await self._records.note(promotion.id, figures=promotion.figures | result.figures | {SOUND: True})
            return None
        figures = promotion.figures | result.figures
        await self._records.note(promotion.id, state="refused", reason=result.reason, figures=figures)
        said = f"bundle {promotion.bundle} is refused: {result.reason}"
        return GateRefused(said, figures | {"promotion": promotion.id})

    async def _verified(self, row: BundleRow) -> GateResult:
        """Surfaces that go back together share one look at the hashes."""
        if row.id not in self._verifying:
            work = asyncio.to_thread(examine, lambda: verify(row.folder, row.files))
            self._verifying[row.id] = asyncio.get_running_loop().create_task(work)
            self._verifying[row.id].add_done_callback(lambda _: self._verifying.pop(row.id))
        return await asyncio.shield(self._verifying[row.id])
