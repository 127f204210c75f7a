"""Many small models as a worker does them: one configuration on some segments, one after the other."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tune.journal import trial_name
from tune.segments import SegmentedData
from tune.trial import Configuration, Report, fit_and_judge
from tune.worker import failure


@dataclass(frozen=True, slots=True)
class Batch:
    """A configuration and the segments (by number) to fit it on; `attempts`: how often that was begun before."""

    configuration: Configuration
    segments: tuple[int, ...]
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class SegmentRunner:
    """What all jobs of a sweep by segment have in common; it travels once, through the object store."""

    data: SegmentedData
    metric: str
    seed: int
    models: str

    def run(self, job: Batch, report: Callable[[Report], None]) -> Report:
        """`results`: one of each segment; `seconds`: of all of them. What goes wrong in one segment harms no other."""
        del report  # a small model is judged at its end alone
        seconds: defaultdict[str, float] = defaultdict(float)
        results = [self._one(job.configuration, segment, seconds) for segment in job.segments]
        return {"results": results, "seconds": dict(seconds)}

    def _one(self, configuration: Configuration, segment: int, seconds: defaultdict[str, float]) -> dict[str, Any]:
        began = perf_counter()
        found: dict[str, Any] = {"segment": self.data.segments.names[segment], "number": segment}
        try:
            shared = self.data.cut(segment)
            seconds["prepare_s"] += perf_counter() - began
            done = fit_and_judge(
                configuration.family,
                configuration.params or {},
                shared,
                metric=self.metric,
                seed=self.seed,
                report=lambda _: None,
                save_to=model_folder(self.models, trial_name(configuration.family, configuration.number), segment),
            )
        except Exception as error:
            return found | failure(error)
        for kind, spent in done["seconds"].items():
            seconds[kind] += spent
        kept = ("value", "metrics", "fit_s", "evaluate_s", "bytes", "note")
        return found | {"cases": len(shared.cases)} | {name: done[name] for name in kept}


def model_folder(models: str, trial: str, segment: int) -> Path:
    """Where the model of a configuration and a segment is saved."""
    return Path(models) / f"segment-{segment:05d}" / trial
