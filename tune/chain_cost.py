"""What serving a chain takes off the metric, where the sweep's objective weighs latency or size."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import FeatureContext, feature_names, features
from app.ranking.network import NetworkRanker
from app.retrieval.merge import take
from app.retrieval.query import Candidates
from tune.case_table import CaseTable
from tune.chains import Mix, Slices
from tune.objective import PLAIN, Objective

PROBES = 15  # lone requests, of which the median is taken


@dataclass(frozen=True, slots=True)
class Costs:
    """Of a mix the sum of its sources, and of a ranker its own time.

    Attributes:
        objective: what a millisecond and a megabyte take off the metric.
        latency_ms: of each family, of one user's candidates.
        size_bytes: of each family's saved model.
        ranker_ms: features and scores of one user's candidates.
    """

    objective: Objective = PLAIN
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    ranker_ms: float = 0.0

    def of(self, mix: Mix, ranked: bool = False) -> float:
        """In the unit of the metric."""
        took = sum(self.latency_ms.get(name, 0.0) for name, _ in mix) + (self.ranker_ms if ranked else 0.0)
        return -self.objective.value(0.0, took, sum(self.size_bytes.get(name, 0) for name, _ in mix))

    def with_ranker(
        self, table: CaseTable, slices: Slices, spec: FeatureSpec, items: ItemFeatures, limit: int
    ) -> "Costs":
        """With the time that a network of the usual size takes, measured on some validation cases; as it is where no
        millisecond is weighed.
        """
        if not self.objective.latency_ms or not len(table):
            return self
        whole, cases = slices.interactions, slices.validation
        some = np.linspace(0, len(cases) - 1, min(PROBES, len(cases)), dtype=np.int64)
        histories = whole.histories_before(cases[some]).last(slices.history_limit)
        counted = ItemStatistics.of(whole, spec.half_lives_days, as_of=int(whole.times[cases[0]]))
        ranker, taken = NetworkRanker(feature_names(spec)), list[float]()
        for place, case in enumerate([*some[:1].tolist(), *some.tolist()]):
            row = max(place - 1, 0)
            found = _first(take(table.found, [case]), limit)
            context = FeatureContext(spec, histories.slice(row, row + 1), found, table.names, items, counted)
            began = time.perf_counter()
            ranker.score(features(spec, context))
            taken.append((time.perf_counter() - began) * 1000)
        return replace(self, ranker_ms=statistics.median(taken[1:]))


def _first(found: Candidates, limit: int) -> Candidates:
    """Of the candidates of one question."""
    rows = found.rows[:limit]
    return Candidates(rows, np.array([0, len(rows)]), found.scores[:limit], found.ranks[:limit])


FREE = Costs()
