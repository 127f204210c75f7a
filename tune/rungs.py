"""ASHA: of the trials that reach a rung, one in `reduction` goes on. No Ray here.

Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020.
"""

from collections.abc import Sequence

import numpy as np

from app.models.families import FAMILIES
from tune.journal import TrialRecord
from tune.space import SweepFile
from tune.trial import Rungs


class FamilyScheduler:
    """ASHA among the trials of each iterative family; the others run to their end.

    The rungs of an interrupted sweep are rebuilt from its recorded passes.
    """

    def __init__(self, sweep: SweepFile, finished: Sequence[TrialRecord]) -> None:
        self.rungs = Rungs(sweep.grace, sweep.reduction) if stops_early(sweep) else None
        self._keep = 1.0 - 1.0 / sweep.reduction
        self._values: dict[tuple[str, int], dict[int, float]] = {}  # by family and rung: trial number to value
        for record in finished:
            for done, value in sorted(record.passes):
                self.stops(record.family, record.number, done, value)

    def stops(self, family: str, number: int, done: int, value: float) -> bool:
        """Whether a trial with this value after `done` passes ends there: it is below the best 1 in `reduction`."""
        if self.rungs is None or done not in self.rungs or not FAMILIES[family].iterative:
            return False
        there = self._values.setdefault((family, done), {})
        others = [found for other, found in there.items() if other != number]
        there[number] = value
        return bool(others) and value < float(np.quantile(others, self._keep))


def stops_early(sweep: SweepFile) -> bool:
    """Whether trials may be stopped before their end."""
    return sweep.scheduler == "asha"
