"""What a sweep maximises: a metric, less what serving the model costs in milliseconds and megabytes."""

import statistics
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.models.candidate import CandidateModel
from app.models.interactions import Interactions
from app.retrieval.allowed import Allowed
from app.retrieval.query import Query
from app.retrieval.sources import source_of

MB = 1_000_000
CANDIDATES = 100  # that a probe asks for, as the first source of a chain is asked


@dataclass(frozen=True, slots=True)
class Objective:
    """value = metric - latency_ms × milliseconds of one retrieval - megabyte × megabytes of the saved model."""

    latency_ms: float = 0.0
    megabyte: float = 0.0

    def value(self, quality: float, latency_ms: float | None, size_bytes: int | None) -> float:
        slow = self.latency_ms * (latency_ms or 0.0) if self.latency_ms else 0.0
        large = self.megabyte * (size_bytes or 0) / MB if self.megabyte else 0.0
        return quality - slow - large


PLAIN = Objective()


class Asked(Protocol):
    """What probes are drawn from (`tune.trial.SharedData`)."""

    @property
    def interactions(self) -> Interactions: ...

    @property
    def cases(self) -> NDArray[np.int64]: ...

    @property
    def history_limit(self) -> int: ...


def latency_of(model: CandidateModel, data: Asked, probes: int) -> float:
    """Milliseconds that the candidates of one user take, as at serving: the median of single requests.

    The index is built as for serving; one request goes before those that count. What was consumed is left out.
    """
    source = source_of(model)
    chosen = data.cases[np.linspace(0, len(data.cases) - 1, min(probes, len(data.cases)), dtype=np.int64)]
    whole = data.interactions.histories_before(chosen)
    none, unmasked = np.empty((0, data.interactions.n_items), np.bool_), np.full(1, -1, np.int32)
    taken: list[float] = []
    for place in (0, *range(len(chosen))):
        one = whole.slice(place, place + 1)
        query = Query(one.last(data.history_limit), one.items, one.offsets, none, unmasked, (), 0)
        began = time.perf_counter()
        source.search(query.histories, CANDIDATES, Allowed.of(query))
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken[1:])
