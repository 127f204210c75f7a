"""Where the time of a sweep's workers went: what its arithmetic took, and what was lost around it."""

import time
from collections.abc import Mapping
from typing import Any

KINDS = ("fit_s", "evaluate_s", "measure_s", "save_s", "prepare_s", "start_s", "data_s", "report_s", "idle_s")
_OF_A_JOB = ("fit_s", "evaluate_s", "measure_s", "save_s", "prepare_s")


class Losses:
    """Seconds of workers by what they went into; workers × wall time is their sum.

    `fit_s`, `evaluate_s`: the arithmetic. `measure_s`: latency measured. `save_s`: models written. `prepare_s`: data of
    segments cut out. `start_s`: processes started and imports. `data_s`: data fetched and copied. `report_s`: results
    on their way, and decisions. `idle_s`: no job: between two, and at the end while others still work.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.wall_s = 0.0
        self.workers = self._alive = 0
        self._begun = time.monotonic()

    def begin(self) -> None:
        self._begun = time.monotonic()

    def started(self, worker: Any, data_s: float) -> None:
        """A worker is ready, so long after it was asked for."""
        worker.spent = {"start_s": time.monotonic() - worker.hired - data_s, "data_s": data_s}
        self._alive += 1
        self.workers = max(self.workers, self._alive)

    def ended(self, worker: Any, report: Mapping[str, Any]) -> None:
        """A job is over, with the seconds that its worker counted."""
        counted = {name: float(report.get("seconds", {}).get(name, 0.0)) for name in _OF_A_JOB}
        counted["report_s"] = max(0.0, time.monotonic() - worker.began - sum(counted.values()))
        for name, seconds in counted.items():
            worker.spent[name] = worker.spent.get(name, 0.0) + seconds

    def left(self, worker: Any) -> None:
        """A worker is gone."""
        self._alive -= bool(worker.spent)
        for name, seconds in worker.spent.items():
            self.seconds[name] += seconds

    def end(self) -> None:
        """Nothing is done any more; workers that are dismissed behind it still bring their seconds."""
        self.wall_s += time.monotonic() - self._begun

    def as_json(self) -> dict[str, float]:
        """`workers`, `wall_s`, and the seconds of all workers by `KINDS`."""
        counted = sum(seconds for name, seconds in self.seconds.items() if name != "idle_s")
        idle = max(0.0, self.workers * self.wall_s - counted)
        shown = {**self.seconds, "idle_s": idle}
        return {"workers": self.workers, "wall_s": round(self.wall_s, 3)} | {
            name: round(seconds, 3) for name, seconds in shown.items()
        }
