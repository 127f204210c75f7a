"""Whether one bundle's CTR is surely lower than another's, by the live figures of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.stats.counters import DAY_US, HOUR_US
from app.stats.reader import Bucket

# Two-sided 99.9 %: it is looked at again and again, and the items of one list are seen by one person.
Z = 3.29


@dataclass(frozen=True, slots=True)
class Shown:
    """Items shown and clicks on them."""

    impressions: int = 0
    clicks: int = 0

    @property
    def ctr(self) -> float:
        """0 where nothing was shown."""
        return self.clicks / self.impressions if self.impressions else 0.0


def both(hours: Sequence[Bucket], bundle: str, former: str, settled_us: int) -> tuple[Shown, Shown]:
    """(of the bundle, of the former one in the same hours of the day), from the hourly figures of one surface.

    Args:
        settled_us: only hours that ended by then count, microseconds.
    """
    settled = [hour for hour in hours if hour.end <= settled_us]
    mine = [hour for hour in settled if hour.figure.bundle == bundle]
    of_day = {hour.start % DAY_US // HOUR_US for hour in mine}
    theirs = [hour for hour in settled if hour.figure.bundle == former and hour.start % DAY_US // HOUR_US in of_day]
    return _sum(mine), _sum(theirs)


def highest_difference(mine: Shown, theirs: Shown, allowed: float) -> float:
    """Upper end of the interval of CTR less `(1 - allowed)` of the former's; below 0: surely fallen by more than that.

    Normal approximation, with one click and one item without a click added to each, so that no clicks are no certainty.
    """
    p, q = (mine.clicks + 1) / (mine.impressions + 2), (theirs.clicks + 1) / (theirs.impressions + 2)
    keep = 1.0 - allowed
    variance = p * (1 - p) / (mine.impressions + 2) + keep**2 * q * (1 - q) / (theirs.impressions + 2)
    return p - keep * q + Z * math.sqrt(variance)


def _sum(hours: Sequence[Bucket]) -> Shown:
    counts = [hour.figure.counts for hour in hours]
    return Shown(sum(one[0] for one in counts), sum(one[1] for one in counts))
