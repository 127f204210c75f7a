"""The joint choice of mix and ranker on the validation cases, and what each part of the chosen chain is worth there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.evaluation.protocols import Evaluation, evaluated
from app.features.spec import FeatureSpec
from app.features.table import feature_names
from app.ranking.examples import Examples
from tune.ablation import Stage
from tune.case_table import CaseTable
from tune.chain_cost import Costs
from tune.chains import Chain, Mix, score_ranks
from tune.linear_ranker import LinearRanker
from tune.mixes import FILLERS, LEADING, Judged, MixPlan, MixSearch, simplest, standard_error
from tune.ranker_plan import RankerPlan

Logged = Callable[[tuple[str, ...], int | None], Examples | None]
SpecOf = Callable[[Sequence[str]], FeatureSpec]

PROBE_CASES = 1000  # answered cases that the linear ranker learns from while mixes are compared
MANY_LOGGED = 1000  # logged answers with a reaction, below which `examples: auto` takes next events
LOG, NEXT_EVENTS = "log", "next events"


@dataclass(frozen=True, slots=True)
class Option:
    """A chain that may be chosen, with how it did on validation and what serving it costs, in the metric's unit.

    `source`: what its ranker learned from; empty: it has none.
    """

    chain: Chain
    evaluation: Evaluation
    cost: float = 0.0
    source: str = ""

    @property
    def name(self) -> str:
        """As the report calls it."""
        parts = " + ".join(f"{name} {k}" for name, k in self.chain.mix)
        ranker = self.chain.ranker
        return f"{parts}, not ranked" if ranker is None else f"{parts}, ranked ({ranker.kind}, {self.source})"


def chosen(options: Sequence[Option], metric: str) -> Option:
    """Of options on the same cases, simplest first, the last that is better than the one chosen so far.

    Further sources must be better beyond noise: one standard error of the difference by case, users drawn together. A
    ranker must only be better, since the final one learns from more examples than the one that was judged.
    """
    best = options[0]
    for one in options[1:]:
        difference = one.evaluation.per_case[metric] - best.evaluation.per_case[metric]
        for_ranker = one.chain.ranker is not None and (
            best.chain.ranker is None or len(one.chain.mix) <= len(best.chain.mix)
        )
        noise = 0.0 if for_ranker else standard_error(difference, one.evaluation.users)
        if difference.mean() - (one.cost - best.cost) > noise:
            best = one
    return best


def whole_list_ndcg(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (C,): 1 / log2(1 + place), however late; 0 for what was not retrieved.

    Mixes are compared by it, not by the metric of so many places at the top: what a further source brings is found all
    over the list, so that as many cases tell mixes apart much better, and the same mixes are found with every seed.
    """
    found = np.isfinite(ranks)
    return np.where(found, 1.0 / np.log2(1.0 + np.where(found, ranks, 1.0)), 0.0)


def alone(mix: Mix) -> Mix:
    """The first source's own order; of the fillers so little that no list of usual length shows it."""
    return (mix[0], *((name, 1) for name, _ in mix[1:] if name in FILLERS))


@dataclass(frozen=True, slots=True)
class Learning:
    """What rankers are made of.

    Attributes:
        plan: which are tried.
        logged: examples from the log, of some features and before some time (milliseconds; None: all), None: too few.
        before_ms: validation begins.
        table: cases of the ranker slice; None: nothing is learned from next events.
    """

    plan: RankerPlan
    logged: Logged | None
    before_ms: int
    seed: int
    table: CaseTable | None

    def examples(self, mix: Mix, limit: int, spec: FeatureSpec) -> tuple[Examples, str] | None:
        """What a ranker of a mix learns from, and where that is from; None: there is nothing."""
        if self.logged is not None and self.plan.examples != "next":
            log = self.logged(feature_names(spec), self.before_ms)
            if log is not None and (self.plan.examples == "log" or len(log.answered()) >= MANY_LOGGED):
                return log, LOG
        return None if self.table is None else (self.table.examples(mix, limit, spec), NEXT_EVENTS)


class Choice:
    """Options of mixes and rankers on the same validation cases.

    Args:
        judging: the validation cases.
        users: int (C,), the user of each.
        order: the families, best first.
        spec_of: makes the spec of some sources' features.
        limit: candidates that reach the ranker.
        tell: hears how far it is.
    """

    def __init__(
        self,
        judging: CaseTable,
        learning: Learning,
        users: NDArray[np.int32],
        order: Sequence[str],
        spec_of: SpecOf,
        *,
        limit: int,
        costs: Costs,
        plan: MixPlan,
        tell: Callable[[str], None],
    ) -> None:
        self._judging, self._learning, self._users, self._order, self._spec_of = (
            judging,
            learning,
            users,
            order,
            spec_of,
        )
        self._limit, self._costs, self._plan, self._tell = limit, costs, plan, tell
        self._answered = judging.answered()
        self.judged, self.cut = 0, False

    def mixes(self) -> tuple[list[Mix], list[Mix]]:
        """The mixes that may be chosen without a ranker, and those that may with one; simplest first."""
        by_order = self._searched(self._by_order, "")
        plain = list(dict.fromkeys((alone(self._search().start()), by_order)))
        if not self._learning.plan.kinds:
            return plain, []
        ranked = {by_order}
        if (table := self._learning.table) is not None and len(table.answered()):
            random = np.random.default_rng(self._learning.seed)
            answered = table.answered()
            some = answered if len(answered) <= PROBE_CASES else random.choice(answered, PROBE_CASES, replace=False)
            learned, judged = table.some(np.sort(some)), self._judging.some(self._answered)
            ranked.add(self._searched(lambda mix: self._by_linear(mix, learned, judged), ", ranked"))
        return plain, sorted(ranked, key=lambda mix: (len(mix), mix))

    def _search(self, said: str = "") -> MixSearch:
        def told(n: int) -> None:
            self.judged += 1
            if n % 10 == 1:
                self._tell(f"mix {n} of {self._plan.tries} at most{said}")

        return MixSearch(self._order, self._plan, self._users, told)

    def _searched(self, judge: Callable[[Mix], Judged], said: str) -> Mix:
        search = self._search(said)
        found = simplest(search.run(judge), self._users).mix
        self.cut = self.cut or search.cut
        return found

    def _by_order(self, mix: Mix) -> Judged:
        return Judged(mix, whole_list_ndcg(self._judging.ranks(mix, self._limit)), self._costs.of(mix))

    def _by_linear(self, mix: Mix, learned: CaseTable, judged: CaseTable) -> Judged:
        """By a linear ranker of the mix; what no source found is missed by every mix."""
        spec = self._spec_of([name for name, _ in mix])
        ranker = LinearRanker.fitted(learned.examples(mix, self._limit, spec), self._learning.seed)
        ranks = self._ranks_by(ranker.score, mix, spec, judged)
        return Judged(mix, whole_list_ndcg(ranks), self._costs.of(mix, ranked=True))

    def _ranks_by(
        self,
        score: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        mix: Mix,
        spec: FeatureSpec,
        judged: CaseTable | None = None,
    ) -> NDArray[np.float64]:
        """float64 (C,): places by scores; `judged`: the cases whose item any source found, cut out already."""
        ranks = np.full(len(self._judging), np.inf)
        if not len(self._answered):
            return ranks
        found = (judged or self._judging.some(self._answered)).examples(mix, self._limit, spec)
        ranks[self._answered] = score_ranks(found, score(found.features))
        return ranks

    def plain(self, mix: Mix) -> Option:
        """Sources in retrieval order."""
        chain = Chain(mix, self._limit, None, self._spec_of([name for name, _ in mix]))
        return Option(chain, evaluated(self._judging.ranks(mix, self._limit), self._users), self._costs.of(mix))

    def ranked(self, mix: Mix, kind: str) -> Option | None:
        """Sources and a ranker that learned from them; None: there was too little to learn from."""
        spec = self._spec_of([name for name, _ in mix])
        found = self._learning.examples(mix, self._limit, spec)
        if found is None:
            return None
        self._tell(f"training a ranker ({kind}) for {', '.join(name for name, _ in mix)}")
        ranker = self._learning.plan.fitted(kind, feature_names(spec), found[0], self._learning.seed)
        if ranker is None:
            return None
        evaluation = evaluated(self._ranks_by(ranker.score, mix, spec), self._users)
        return Option(Chain(mix, self._limit, ranker, spec), evaluation, self._costs.of(mix, ranked=True), found[1])

    def options(self, likely: Callable[[Sequence[str]], None]) -> list[Option]:
        """All that may be chosen, simplest first. `likely` hears which families these have, before rankers learn."""
        plain, ranked = self.mixes()
        likely(list(dict.fromkeys(name for mix in (*plain, *ranked) for name, _ in mix)))
        found = [self.plain(mix) for mix in plain]
        for mix in ranked:
            found += [one for kind in self._learning.plan.kinds if (one := self.ranked(mix, kind)) is not None]
        return found

    def stages(self, best: Option, options: Sequence[Option]) -> list[Stage]:
        """Each family alone, the options that were not taken, the chain, and the chain less each of its sources."""
        stages = []
        for name in self._order:
            ranks = self._judging.ranks(((name, LEADING),), LEADING)
            stages.append(Stage(f"{name} alone", "alone", evaluated(ranks, self._users).per_case))
        mix, ranker = best.chain.mix, best.chain.ranker
        others = [one for one in options if one is not best]
        if ranker is not None and all(one.chain.mix != mix or one.chain.ranker is not None for one in others):
            others.append(self.plain(mix))
        stages += [Stage(one.name, "other", one.evaluation.per_case) for one in others]
        stages.append(Stage(best.name, "chain", best.evaluation.per_case))
        if mix == alone(mix) and ranker is None:
            return stages
        for name, _ in mix if len(mix) > 1 else ():
            rest = tuple(part for part in mix if part[0] != name)
            less = self.plain(rest) if ranker is None else self.ranked(rest, ranker.kind)
            if less is not None:
                stages.append(Stage(f"the chain without {name}", "without", less.evaluation.per_case))
        return stages
