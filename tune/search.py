"""Where the next configuration of a family comes from: grid, random, population based, or Optuna's TPE. No Ray here.

A proposal is a function of the seed, its number and (Optuna, population) what has been told: an interrupted sweep that
is told its recorded results goes on as it would have.
"""

import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from app.models.families import FAMILIES, Choice, IntRange, Range
from tune.space import FamilyPlan, SweepFile

Params = dict[str, Any]
PERTURBED, RESAMPLED = 1.25, 0.25  # as Jaderberg et al. have them


class Proposer(Protocol):
    """Proposes configurations of one family, as the parameters that differ from its defaults."""

    count: int  # trials of this family in all

    def propose(self, number: int) -> Params:
        """Trial `number`'s parameters, 0 <= number < count."""
        ...

    def tell(self, number: int, params: Params, value: float | None) -> None:
        """A trial has ended with `value` (higher is better), None: it failed."""
        ...


def proposer_of(sweep: SweepFile, family: str) -> Proposer:
    """The proposer that the sweep file asks for."""
    plan = sweep.families[family]
    ranges = plan.ranges(FAMILIES[family])
    seed = zlib.crc32(family.encode()) ^ (sweep.seed or 0)
    if sweep.search == "grid":
        return GridProposer(ranges, plan)
    if sweep.search == "random" or not ranges:
        return RandomProposer(ranges, plan, seed)
    if sweep.search == "population":
        return PopulationProposer(ranges, plan, seed, sweep.population)
    return OptunaProposer(ranges, plan, seed)


class GridProposer:
    """Every combination, the last parameter changing fastest; at most `samples` of them."""

    def __init__(self, ranges: Mapping[str, Range], plan: FamilyPlan) -> None:
        values = [found.values for found in ranges.values() if isinstance(found, Choice)]
        self._names = list(ranges)
        self._points = list(itertools.islice(itertools.product(*values), plan.samples))
        self.count = len(self._points)

    def propose(self, number: int) -> Params:
        return dict(zip(self._names, self._points[number], strict=True))

    def tell(self, number: int, params: Params, value: float | None) -> None:
        """A grid does not learn."""


class RandomProposer:
    """Independent draws: trial n depends on the seed and n alone."""

    def __init__(self, ranges: Mapping[str, Range], plan: FamilyPlan, seed: int) -> None:
        self._ranges, self._seed, self._defaults = dict(ranges), seed, plan.defaults
        self.count = plan.samples if ranges else 1

    def propose(self, number: int) -> Params:
        if number == 0 and self._defaults:
            return {}
        random = np.random.default_rng((self._seed, number))
        return {name: _draw(found, random) for name, found in self._ranges.items()}

    def tell(self, number: int, params: Params, value: float | None) -> None:
        """Draws do not learn."""


class PopulationProposer:
    """Population based: a new configuration is a good one, changed a little.

    The first `population` are random. Then two of the best `population` so far are drawn; the better one is the parent.
    Each parameter is drawn anew with probability RESAMPLED, else moved: a float times or divided by PERTURBED (in its
    range), an integer by at least one, a choice to a neighbour. Exploit and explore as in Jaderberg et al.,
    "Population based training of neural networks", 2017, but for the weights: a family fits from its beginning.
    """

    def __init__(self, ranges: Mapping[str, Range], plan: FamilyPlan, seed: int, population: int) -> None:
        self._random = RandomProposer(ranges, plan, seed)
        self._ranges, self._seed, self._population = dict(ranges), seed, population
        self._told: dict[int, tuple[float, Params]] = {}
        self.count = plan.samples

    def propose(self, number: int) -> Params:
        best = sorted(self._told.items(), key=lambda entry: (-entry[1][0], entry[0]))[: self._population]
        if number < self._population or len(best) < 2:
            return self._random.propose(number)
        random = np.random.default_rng((self._seed, number, 1))
        _, (_, parent) = best[int(random.integers(len(best), size=2).min())]
        whole = {name: parent.get(name) for name in self._ranges}  # of the defaults: nothing is known, drawn anew
        return {name: self._changed(found, whole[name], random) for name, found in self._ranges.items()}

    def tell(self, number: int, params: Params, value: float | None) -> None:
        if value is not None:
            self._told[number] = (value, params)

    def _changed(self, found: Range, value: Any, random: np.random.Generator) -> Any:
        if value is None or random.random() < RESAMPLED:
            return _draw(found, random)
        up = random.random() < 0.5
        if isinstance(found, Choice):
            place = found.values.index(value) + (1 if up else -1)
            return found.values[min(max(place, 0), len(found.values) - 1)]
        moved = value * PERTURBED if up else value / PERTURBED
        if isinstance(found, IntRange):
            moved = max(round(moved), value + 1) if up else min(round(moved), value - 1)
        return type(value)(min(max(moved, found.low), found.high))


class OptunaProposer:
    """Tree-structured Parzen estimator (Optuna), one study a family."""

    def __init__(self, ranges: Mapping[str, Range], plan: FamilyPlan, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._ranges, self._seed, self._defaults = dict(ranges), seed, plan.defaults
        self._distributions = {name: _distribution(found) for name, found in ranges.items()}
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}
        self.count = plan.samples

    def propose(self, number: int) -> Params:
        if number == 0 and self._defaults:
            return {}
        random = np.random.default_rng((self._seed, number))
        # A sampler per proposal: its draws depend on the number, not on how many were asked for in this process.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=int(random.integers(2**31)), n_startup_trials=5, constant_liar=True
        )
        asked = self._study.ask(self._distributions)
        self._asked[number] = asked
        return {name: _value(self._ranges[name], found) for name, found in asked.params.items()}

    def tell(self, number: int, params: Params, value: float | None) -> None:
        if (asked := self._asked.pop(number, None)) is not None:
            state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
            self._study.tell(asked, value, state=state)
        elif value is not None and (found := self._internal(params)) is not None:
            self._study.add_trial(
                optuna.trial.create_trial(params=found, distributions=self._distributions, value=value)
            )

    def _internal(self, params: Params) -> dict[str, Any] | None:
        """A recorded configuration as the study knows it; None: it does not lie in the space (the defaults)."""
        if params.keys() != self._ranges.keys():
            return None
        found: dict[str, Any] = {}
        for name, value in params.items():
            here = self._ranges[name]
            if isinstance(here, Choice) and value not in here.values:
                return None
            found[name] = here.values.index(value) if isinstance(here, Choice) else value
        return found


def _distribution(found: Range) -> BaseDistribution:
    if isinstance(found, Choice):
        return CategoricalDistribution(tuple(range(len(found.values))))
    if isinstance(found, IntRange):
        return IntDistribution(found.low, found.high, log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)


def _value(found: Range, drawn: Any) -> Any:
    if isinstance(found, Choice):
        return found.values[int(drawn)]
    if isinstance(found, IntRange):
        return int(drawn)
    return min(max(float(drawn), found.low), found.high)


def _draw(found: Range, random: np.random.Generator) -> Any:
    if isinstance(found, Choice):
        return _value(found, random.integers(len(found.values)))
    low, high = found.low, found.high + (1 if isinstance(found, IntRange) else 0)
    drawn = math.exp(random.uniform(math.log(low), math.log(high))) if found.log else random.uniform(low, high)
    return _value(found, min(drawn, found.high))
