"""How the answers of each bundle go, so that a promotion that does harm is taken back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.chain.request import Answer
from app.errors import MantaError
from app.settings import PromotionSettings

SHORTEST_MS, BUCKETS = 0.5, 32  # each bucket of answer times ends at sqrt(2) times the end of the one before
ENOUGH_TIMES = 10  # times `promotion.least_answers`, before a percentile is believed
PERCENTILE = 0.95


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests that a bundle was asked, those that failed through it, and answers by time (empty: BUCKETS zeros)."""

    asked: int = 0
    failed: int = 0
    times: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Harm:
    """Why a bundle is taken back: in words, and by which figures (JSON)."""

    reason: str
    figures: dict[str, float | int | str]


class Health:
    """The tallies of one replica."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def count(self, bundle: str, outcomes: Sequence[Answer | Exception], *, local: bool) -> None:
        """Adds a batch. What the client did wrong does not count against the bundle, nor a stage's death elsewhere:
        degraded answers count only where the stages are `local`.
        """
        failed = sum(_failed(outcome, local) for outcome in outcomes)
        before = self._tallies.get(bundle, Tally())
        times = list(before.times) or [0] * BUCKETS
        for outcome in outcomes:
            if isinstance(outcome, Answer):
                times[_bucket(outcome.timings_ms.get("total", 0.0))] += 1
        self._tallies[bundle] = Tally(before.asked + len(outcomes), before.failed + failed, tuple(times))

    def tallies(self, bundles: Iterable[str]) -> dict[str, Tally]:
        """Those of the bundles that are held here; others are forgotten."""
        held = set(bundles)
        self._tallies = {bundle: tally for bundle, tally in self._tallies.items() if bundle in held}
        return dict(self._tallies)


def since(before: Mapping[str, Tally], now: Mapping[str, Tally]) -> Tally:
    """What has come since `before`, summed over replicas (by name)."""
    asked = failed = 0
    times = [0] * BUCKETS
    for member, tally in now.items():
        earlier = before.get(member, Tally())
        asked += max(0, tally.asked - earlier.asked)
        failed += max(0, tally.failed - earlier.failed)
        for place, count in enumerate(tally.times):
            times[place] += max(0, count - (earlier.times[place] if earlier.times else 0))
    return Tally(asked, failed, tuple(times))


def harm(now: Tally, former: Tally, settings: PromotionSettings) -> Harm | None:
    """Whether answers since the promotion are enough to judge, and bad enough to take it back.

    Args:
        former: of what was live before, until it went.
    """
    if now.asked >= settings.least_answers and now.failed > settings.most_failed * now.asked:
        said = f"errors: {now.failed} of {now.asked} answers failed, wanted at most {settings.most_failed:.0%}"
        return Harm(said, {"by": "errors", "failed": now.failed, "asked": now.asked})
    enough = ENOUGH_TIMES * settings.least_answers
    if sum(now.times) < enough or sum(former.times) < enough:
        return None
    mine, theirs = percentile_ms(now.times), percentile_ms(former.times)
    wanted = max(settings.slower_from_ms, settings.most_slower * theirs)
    if mine <= wanted:
        return None
    said = f"latency: {PERCENTILE:.0%} of its answers took up to {mine:.0f} ms, of those before {theirs:.0f} ms"
    figures: dict[str, float | int | str] = {"by": "latency", "ms": mine, "before_ms": theirs, "wanted_ms": wanted}
    return Harm(f"{said}; wanted at most {wanted:.0f} ms", figures)


def percentile_ms(times: Sequence[int], share: float = PERCENTILE) -> float:
    """The end of the bucket in which the percentile lies, milliseconds; there must be answers."""
    left = share * sum(times)
    for place, count in enumerate(times):
        left -= count
        if left <= 0:
            return float(SHORTEST_MS * 2 ** (place / 2))
    return float(SHORTEST_MS * 2 ** ((len(times) - 1) / 2))


def _bucket(milliseconds: float) -> int:
    if milliseconds <= SHORTEST_MS:
        return 0
    return min(BUCKETS - 1, math.ceil(2 * math.log2(milliseconds / SHORTEST_MS)))


def _failed(outcome: Answer | Exception, local: bool) -> bool:
    if isinstance(outcome, Answer):
        reason = outcome.degraded_reason
        if not local or reason is None or reason.stage == "state":  # which is no bundle's
            return False
        return reason.cause in ("error", "circuit_open")
    return not isinstance(outcome, MantaError)
