"""How the answers of each bundle go, so that a promotion that does harm is taken back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.chain.request import Answer
from app.errors import MantaError

# A bundle is judged only after this many answers, and taken back if more than this share of them failed.
ENOUGH = 50
HARMFUL = 0.5


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests that a bundle was asked, and those that failed through it."""

    asked: int = 0
    failed: int = 0


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
        self._tallies[bundle] = Tally(before.asked + len(outcomes), before.failed + failed)

    def tallies(self, bundles: Iterable[str]) -> dict[str, Tally]:
        """Those of the bundles that are held here; others are forgotten."""
        held = set(bundles)
        self._tallies = {bundle: tally for bundle, tally in self._tallies.items() if bundle in held}
        return dict(self._tallies)


def harm(before: Mapping[str, Tally], now: Mapping[str, Tally]) -> Tally:
    """What has come since `before`, summed over replicas (by name)."""
    asked = failed = 0
    for member, tally in now.items():
        earlier = before.get(member, Tally())
        asked += max(0, tally.asked - earlier.asked)
        failed += max(0, tally.failed - earlier.failed)
    return Tally(asked, failed)


def is_harmful(tally: Tally) -> bool:
    """Whether it is enough to judge, and bad enough to take back."""
    return tally.asked >= ENOUGH and tally.failed > HARMFUL * tally.asked


def _failed(outcome: Answer | Exception, local: bool) -> bool:
    if isinstance(outcome, Answer):
        reason = outcome.degraded_reason
        return local and reason is not None and reason.cause in ("error", "circuit_open")
    return not isinstance(outcome, MantaError)
