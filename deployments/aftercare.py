"""What becomes of a promotion that went live: watched for a while, taken back where it does harm or somebody asks."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from app.bundles.gate import BEFORE
from app.bundles.registry import Promotion
from app.errors import MantaError
from app.settings import PromotionSettings
from deployments.health import Harm, Tally, harm, since
from deployments.records import Records
from deployments.rollout import Rollout

logger = logging.getLogger(__name__)

# In a promotion's figures: how the answers of each gateway from its bundle had gone when it went live, how those of
# what was live before, and at the end why it was taken back.
ANSWERS, FORMER, HARM = "answers_before", "answers_of_former", "harm"

# (bundle, what was live before by surface) -> why its clicks say that it does harm. Blocks.
Ctr = Callable[[str, Mapping[str, str]], Harm | None]
RollBack = Callable[[str, str], Awaitable[Promotion]]


class Aftercare:
    """Belongs to one event loop, as the rollout does."""

    def __init__(
        self,
        records: Records,
        rollout: Rollout,
        settings: PromotionSettings,
        roll_back: RollBack,
        ctr: Ctr | None = None,
    ) -> None:
        """`roll_back`: begins the way back of a surface, for a reason; raises where its bundle is refused."""
        self._records, self._rollout, self._settings = records, rollout, settings
        self._roll_back, self._ctr = roll_back, ctr
        self._taking_back: set[str] = set()

    def former(self, promotion: Promotion) -> Tally:
        """How the answers went of what is live until now, before it goes."""
        bundles = {bundle for bundle in promotion.figures.get(BEFORE, {}).values() if bundle}
        tallies = {(member, name): tally for name in bundles for member, tally in self._rollout.tallies(name).items()}
        return since({}, {f"{member} {name}": tally for (member, name), tally in tallies.items()})

    def figures(self, promotion: Promotion, former: Tally) -> dict[str, Any]:
        """What a promotion that goes live now must keep, so that its watch can be taken up by another coordinator."""
        tallies = self._rollout.tallies(promotion.bundle)
        return {ANSWERS: {member: _plain(tally) for member, tally in tallies.items()}, FORMER: _plain(former)}

    def is_due(self, promotion: Promotion) -> bool:
        """Whether it is to be watched (still): it changed what was live, the gate let it, and not long ago."""
        begun = promotion.kind == "promote" and not promotion.force and BEFORE in promotion.figures
        return begun and promotion.state == "live" and self._left_s(promotion) > 0

    async def watch(self, promotion: Promotion) -> None:
        """Takes a promotion back by itself where it does harm, from the surfaces that still show it."""
        start = {member: _tally(plain) for member, plain in promotion.figures.get(ANSWERS, {}).items()}
        former = _tally(promotion.figures.get(FORMER, []))

        def found() -> Harm | None:
            return harm(since(start, self._rollout.tallies(promotion.bundle)), former, self._settings)

        while (left := self._left_s(promotion)) > 0:
            await self._rollout.until(lambda: found() is not None, min(left, self._settings.ctr_every_s))
            surfaces = await self._shown(promotion)
            if not surfaces:
                return
            why = found()
            if why is None and self._ctr is not None:
                why = await asyncio.to_thread(self._ctr, promotion.bundle, surfaces)
            if why is not None:
                await self._take_back(promotion, why, list(surfaces))
                return

    async def _shown(self, promotion: Promotion) -> dict[str, str]:
        """The surfaces that still show it, with what they showed before."""
        live = (await self._records.ask(self._records.registry.aliases)).live
        before: dict[str, str | None] = promotion.figures[BEFORE]
        return {
            surface: former
            for surface in promotion.surfaces
            if live.get(surface) == promotion.bundle and (former := before.get(surface)) not in (None, promotion.bundle)
        }

    async def _take_back(self, promotion: Promotion, why: Harm, surfaces: list[str]) -> None:
        logger.error("promotion %s is taken back: %s", promotion.id, why.reason)
        self._taking_back.add(promotion.id)
        because = f"promotion {promotion.id} is taken back: {why.reason}"
        backs = await asyncio.gather(*(self._one_back(surface, because) for surface in surfaces))
        rollbacks = [one for one in backs if one]
        if rollbacks:
            figures = promotion.figures | {HARM: why.figures}
            reason = f"{why.reason}; {', '.join(rollbacks)}"
            await self._records.note(promotion.id, state="rolled_back", reason=reason, figures=figures)

    async def _one_back(self, surface: str, because: str) -> str | None:
        """The rollback's id, once its bundle was found sound; None: there is no way back."""
        try:
            return (await self._records.insist(lambda: self._roll_back(surface, because))).id
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

    def _left_s(self, promotion: Promotion) -> float:
        return promotion.changed + 3600 * self._settings.watch_h - time.time()


def _plain(tally: Tally) -> list[Any]:
    return [tally.asked, tally.failed, list(tally.times)]


def _tally(plain: list[Any]) -> Tally:
    return Tally(plain[0], plain[1], tuple(plain[2]) if len(plain) > 2 else ()) if plain else Tally()
