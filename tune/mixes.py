"""Which sources a mix has and how many candidates each gives: a greedy search that ends with the cheapest good mix."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.evaluation.metrics import bootstrap_interval
from tune.chains import Mix

LEADING, FOLLOWING, FILLING = 100, 60, 20  # candidates of the first source, of each further one, of a filling one
# Always in the mix, if fitted: new items are found by content and vectors, and whoever has no history by popularity.
FILLERS = ("content", "vector", "popularity")
INTERVAL_ERRORS = 1.96  # standard errors from a mean to the end of its 95 % interval


class MixPlan(BaseModel):
    """`mix:` of a sweep file: how far the search for sources and their counts goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most_sources: int = Field(4, ge=1, le=16, description="Sources at most, those that only fill up not counted.")
    counts: tuple[int, ...] = Field(
        (30, 60, 100), min_length=1, description="Candidates of a source that are tried; the deepest bounds all."
    )
    tries: int = Field(40, ge=1, description="Mixes that are judged at most, with a ranker and without one each.")
    budget_s: float | None = Field(
        None, gt=0, description="Seconds after which no further mix is tried; null: tries alone bound it (repeatable)."
    )
    cases: int = Field(3000, ge=100, description="Cases of the ranker slice that rankers learn from while judged.")

    @property
    def depth(self) -> int:
        """Candidates of a source that any mix may have."""
        return max(*self.counts, LEADING)


DEFAULT_MIX = MixPlan()


@dataclass(frozen=True, slots=True)
class Judged:
    """A mix with what it is worth: `per_case` float64 (C,) less `cost`, in the unit of the metric."""

    mix: Mix
    per_case: NDArray[np.float64]
    cost: float = 0.0

    @property
    def value(self) -> float:
        return float(self.per_case.mean()) - self.cost

    @property
    def expense(self) -> tuple[float, int, int, Mix]:
        """What makes one cheaper than another where neither is better: cost, sources, candidates."""
        return self.cost, len(self.mix), sum(k for _, k in self.mix), self.mix


Judge = Callable[[Mix], Judged]


def simplest(judged: Sequence[Judged], users: NDArray[np.integer]) -> Judged:
    """Of mixes judged on the same cases the cheapest that is not surely worse than the best.

    That is by one standard error of the paired difference, users drawn together (the rule of Breiman et al. 1984): a
    source that adds nothing is left out, and a tie goes to the cheaper.
    """
    best = max(judged, key=lambda one: (one.value, *(-part for part in one.expense[:3])))
    for one in sorted(judged, key=lambda one: one.expense):
        if one is best or best.value - one.value <= standard_error(best.per_case - one.per_case, users):
            return one
    return best


def standard_error(difference: NDArray[np.float64], users: NDArray[np.integer]) -> float:
    """Of the mean of a paired difference, by bootstrap over users."""
    low, high = bootstrap_interval(difference, users)
    return (high - low) / (2 * INTERVAL_ERRORS)


@dataclass(slots=True)
class MixSearch:
    """Greedy: the source that helps most, the count that suits it, and so on; then what is simplest without each of its
    sources and with each other count, as long as that makes it simpler.

    Attributes:
        order: the families that there are, best first.
        plan: how far it goes.
        users: int (C,), the user of each case.
        told: hears how many mixes have been judged.
    """

    order: Sequence[str]
    plan: MixPlan
    users: NDArray[np.integer]
    told: Callable[[int], None] = lambda _: None
    cut: bool = field(default=False, init=False)

    def start(self) -> Mix:
        """The best family, filled up."""
        return self._sized({self.order[0]: LEADING})

    def run(self, judge: Judge) -> list[Judged]:
        """All mixes that were judged, the starting one first. Depends on what `judge` says alone, and on the budget."""
        deadline = None if self.plan.budget_s is None else time.monotonic() + self.plan.budget_s
        seen: dict[Mix, Judged] = {}

        def tried(parts: Mapping[str, int]) -> Judged | None:
            mix = self._sized(parts)
            if mix not in seen:
                if seen and (len(seen) >= self.plan.tries or (deadline is not None and time.monotonic() > deadline)):
                    self.cut = True
                    return None
                seen[mix] = judge(mix)
                self.told(len(seen))
            return seen[mix]

        parts = {self.order[0]: LEADING}
        best = tried(parts)
        while len(parts) < self.plan.most_sources:
            further = [{**parts, name: FOLLOWING} for name in self.order if name not in parts]
            found = self._best(further, tried)
            if found is None:
                break
            added = list(found)[-1]
            found = self._best([found, *({**found, added: k} for k in self.plan.counts)], tried) or found
            judged = tried(found)
            if judged is None or best is None or judged.value <= best.value:
                break
            parts, best = found, judged
        held = None
        while (now := simplest(list(seen.values()), self.users).mix) != held:
            held, parts = now, self._parts(now)
            for name in parts if len(parts) > 1 else ():
                tried({other: k for other, k in parts.items() if other != name})
            for name, count in parts.items():
                for k in self.plan.counts:
                    if k != count:
                        tried({**parts, name: k})
        return list(seen.values())

    def _best(
        self, parts: Sequence[dict[str, int]], tried: Callable[[Mapping[str, int]], Judged | None]
    ) -> dict[str, int] | None:
        """Of some mixes the most valuable, the first among equals; None: none could be judged any more."""
        judged = [(one, found.value) for one in parts if (found := tried(one)) is not None]
        return max(judged, key=lambda entry: entry[1])[0] if judged else None

    def _parts(self, mix: Mix) -> dict[str, int]:
        """The sources of a mix that do not only fill up."""
        return {name: k for place, (name, k) in enumerate(mix) if not place or (name not in FILLERS or k != FILLING)}

    def _sized(self, parts: Mapping[str, int]) -> Mix:
        fillers = [(name, FILLING) for name in self.order if name in FILLERS and name not in parts]
        return (*parts.items(), *fillers)
