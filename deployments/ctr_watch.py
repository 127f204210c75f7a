"""CTR of what went live against what was live before, from the live figures of the coordinator's node."""

import logging
from collections.abc import Mapping
from pathlib import Path

from app.errors import MantaError
from app.settings import Settings
from app.stats.fallen import both, highest_difference
from app.stats.fold import SECOND_US
from app.stats.reader import StatsReader
from deployments.health import Harm

logger = logging.getLogger(__name__)


class CtrWatch:
    """Blocks; may be called from any thread."""

    def __init__(self, settings: Settings, home: Path, name: str) -> None:
        """`name`: that no other reader of the node's figures has."""
        self._settings, self._reader = settings, StatsReader(settings.stats, home, name)
        self._told = ""

    def __call__(self, bundle: str, before: Mapping[str, str]) -> Harm | None:
        """The first surface (with what was live there before) on which CTR has surely fallen; None: on none, so far."""
        if not self._settings.stats.enabled:
            return None
        try:
            return self._fallen(bundle, before)
        except MantaError as error:
            if str(error) != self._told:
                self._told = str(error)
                logger.warning("CTR after a promotion cannot be looked at: %s", error)
            return None

    def _fallen(self, bundle: str, before: Mapping[str, str]) -> Harm | None:
        wanted = self._settings.promotion
        watermark = self._reader.progress().watermark
        if watermark is None:
            return None
        settled = watermark - int(wanted.ctr_settle_s * SECOND_US)
        for surface, former in before.items():
            hours = self._reader.figures(0, settled, "hour", surface=surface, by_source=False)
            mine, theirs = both(hours, bundle, former, settled)
            if min(mine.impressions, theirs.impressions) < wanted.least_impressions:
                continue
            if highest_difference(mine, theirs, wanted.most_ctr_loss) < 0:
                said = (
                    f"CTR on {surface}: {mine.ctr:.4f} ({mine.clicks} of {mine.impressions}) against {theirs.ctr:.4f} "
                    f"({theirs.clicks} of {theirs.impressions}) of {former} in the same hours of the day; "
                    f"wanted at most {wanted.most_ctr_loss:.0%} less"
                )
                return Harm(said, {"by": "ctr", "surface": surface, "ctr": mine.ctr, "before": theirs.ctr})
        return None
