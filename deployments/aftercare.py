"""What becomes of a promotion that went live: watched for a while, taken back where it does harm or somebody asks."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from app.bundles.gate import BEFORE
from app.bundles.registry import Promotion
from app.errors import MantaError
from deployments.health import Tally, harm, is_harmful
from deployments.records import Records
from deployments.rollout import Rollout

logger = logging.getLogger(__name__)

# How long a promotion is watched after it went live.
WATCH_S = 60.0
# In a promotion's figures: how the answers of each gateway from its bundle had gone when it went live.
ANSWERS = "answers_before"


class Aftercare:
    """Belongs to one event loop, as the rollout does."""

    def __init__(self, records: Records, rollout: Rollout, roll_back: Callable[[str], Awaitable[Promotion]]) -> None:
        """`roll_back`: begins the way back of a surface; raises where its bundle is refused."""
        self._records, self._rollout, self._roll_back = records, rollout, roll_back
        self._taking_back: set[str] = set()

    def figures(self, promotion: Promotion) -> dict[str, Any]:
        """What a promotion that goes live now must keep, so that its watch can be taken up by another coordinator."""
        tallies = self._rollout.tallies(promotion.bundle)
        return {ANSWERS: {member: [tally.asked, tally.failed] for member, tally in tallies.items()}}

    def is_due(self, promotion: Promotion) -> bool:
        """Whether it is to be watched (still): it changed what was live, the gate let it, and not long ago."""
        begun = promotion.kind == "promote" and not promotion.force and BEFORE in promotion.figures
        return begun and promotion.state == "live" and _left_s(promotion) > 0

    async def watch(self, promotion: Promotion) -> None:
        """Takes a promotion back by itself where most of its answers fail, from the surfaces that still show it."""
        bundle, rollout = promotion.bundle, self._rollout
        start = {member: Tally(*counts) for member, counts in promotion.figures.get(ANSWERS, {}).items()}
        if not await rollout.until(lambda: is_harmful(harm(start, rollout.tallies(bundle))), _left_s(promotion)):
            return
        found = harm(start, rollout.tallies(bundle))
        await self._take_back(promotion, f"{found.failed} of {found.asked} answers failed")

    async def _take_back(self, promotion: Promotion, reason: str) -> None:
        logger.error("promotion %s is taken back: %s", promotion.id, reason)
        before: dict[str, str | None] = promotion.figures[BEFORE]
        live = (await self._records.ask(self._records.registry.aliases)).live
        surfaces = [
            surface
            for surface in promotion.surfaces
            if live.get(surface) == promotion.bundle and before.get(surface) not in (None, promotion.bundle)
        ]
        self._taking_back.add(promotion.id)
        rollbacks = [one for one in await asyncio.gather(*map(self._one_back, surfaces)) if one]
        if rollbacks:
            reason = f"{reason}; {', '.join(rollbacks)}"
            await self._records.note(promotion.id, state="rolled_back", reason=reason)

    async def _one_back(self, surface: str) -> str | None:
        """The rollback's id, once its bundle was found sound; None: there is no way back."""
        try:
            return (await self._records.insist(lambda: self._roll_back(surface))).id
        except MantaError as error:
            logger.error("surface %s cannot be taken back: %s", surface, error)
            return None

    def mark_rolled_back(self, rollback: Promotion) -> None:
        """The newest promotion that had put there what was live before is rolled back by this one. Blocks."""
        registry = self._records.registry
        bundles = set(rollback.figures[BEFORE].values())
        for earlier in registry.promotions(100, "live"):
            on_surface = set(earlier.surfaces) & set(rollback.surfaces)
            if earlier.id != rollback.id and earlier.bundle in bundles and on_surface:
                if earlier.id not in self._taking_back:  # that names all its rollbacks itself
                    registry.update_promotion(earlier.id, state="rolled_back", reason=f"by {rollback.id}")
                return


def _left_s(promotion: Promotion) -> float:
    return promotion.changed + WATCH_S - time.time()
