"""The trials of a sweep by segment: many small models a job, the largest first, smaller jobs towards the end."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tune.journal import Journal, TrialRecord, append_line, read_lines, trial_name
from tune.pool import Job, Shape
from tune.segment_runner import Batch
from tune.segments import Segments
from tune.space import SweepFile
from tune.steering import SweepSearcher
from tune.trial import Configuration, Report

JOBS_AHEAD = 8  # a job takes a share of what is left, so that each worker has this many still to come
LEAST_JOB_EVENTS = 2_000  # a job of fewer events would cost more on its way than its fits
Result = dict[str, Any]


class SegmentJournal:
    """`segments.jsonl`: one line a job, with the results of its segments; each flushed before the next."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.results: dict[str, dict[str, Result]] = {}  # by trial and segment
        self.params: dict[str, dict[str, Any]] = {}
        for line in read_lines(file):
            self._take(line)

    def write(self, trial: str, params: Mapping[str, Any], results: Iterable[Result]) -> None:
        """Puts the results of some segments on disk.

        Raises:
            MantaError: it cannot be written (a full disk).
        """
        line = {"trial": trial, "params": dict(params), "results": list(results)}
        append_line(self.file, line)
        self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        self.params[line["trial"]] = line["params"]
        held = self.results.setdefault(line["trial"], {})
        held.update({result["segment"]: result for result in line["results"]})


@dataclass(slots=True)
class _Open:
    """A configuration under way: segments not handed out, the largest first, and how many have no result yet."""

    configuration: Configuration
    record: TrialRecord
    left: deque[int] = field(default_factory=deque)
    missing: int = 0


class SegmentTrials:
    """The configurations as `Work` of a pool; a trial's value is the mean over all cases of its segments."""

    def __init__(
        self,
        sweep: SweepFile,
        segments: Segments,
        journal: Journal,
        results: SegmentJournal,
        searcher: SweepSearcher,
        shape_of: Callable[[str], Shape],
        workers: int,
        told: Callable[[], None],
    ) -> None:
        """`workers`: about as many as there will be, to size the jobs."""
        self._sweep, self._segments, self._told = sweep, segments, told
        self._journal, self._results, self._searcher = journal, results, searcher
        self._shapes = {family: shape_of(family) for family in sweep.families}
        self._workers = workers
        self._events = segments.sizes
        self._open: dict[str, _Open] = {}
        self._again: deque[Batch] = deque()

    def waiting(self) -> Mapping[Shape, int]:
        found: dict[Shape, int] = {}
        for batch in self._again:
            self._more(found, batch.configuration.family, 1)
        for one in self._open.values():
            self._more(found, one.configuration.family, len(one.left))
        for configuration in self._searcher.queue:
            self._more(found, configuration.family, len(self._segments))
        return found

    def take(self, shape: Shape) -> Job | None:
        batch = self._repeated(shape) or self._next(shape)
        if batch is None:
            return None
        name = _name(batch.configuration)
        first = self._segments.names[batch.segments[0]]
        more = f" and {len(batch.segments) - 1} more" if len(batch.segments) > 1 else ""
        return Job(f"{name}: {first}{more}", batch)

    def told(self, job: Job, report: Report) -> bool:
        batch: Batch = job.load
        if report.get("error"):  # of the runner itself: as if the process had died
            self.died(job, str(report["error"]))
            return False
        final: list[Result] = []
        for result in report["results"]:
            if result.get("again") and batch.attempts < self._sweep.retries:
                self._again.append(Batch(batch.configuration, (result["number"],), batch.attempts + 1))
            else:
                final.append(result)
        self._ended(batch.configuration, final)
        return False

    def died(self, job: Job, why: str) -> None:
        """The segments of the job are done again one by one, so that one of them harms no other."""
        batch: Batch = job.load
        if batch.attempts < self._sweep.retries:
            self._again.extend(Batch(batch.configuration, (segment,), batch.attempts + 1) for segment in batch.segments)
            return
        failed = [{"segment": self._segments.names[one], "number": one, "error": why} for one in batch.segments]
        self._ended(batch.configuration, failed)

    @property
    def done(self) -> int:
        """Models that have a result, or failed for good."""
        return sum(len(held) for held in self._results.results.values())

    def cut(self) -> None:
        """The budget has ended: configurations that lack segments are written down as far as they are."""
        for name, one in self._open.items():
            self._summed(name, one.record, "cut")
        self._open.clear()
        self._told()

    def _more(self, found: dict[Shape, int], family: str, jobs: int) -> None:
        if jobs:
            shape = self._shapes[family]
            found[shape] = found.get(shape, 0) + jobs

    def _repeated(self, shape: Shape) -> Batch | None:
        for batch in self._again:
            if self._shapes[batch.configuration.family] == shape:
                self._again.remove(batch)
                return batch
        return None

    def _next(self, shape: Shape) -> Batch | None:
        families = [family for family, wanted in self._shapes.items() if wanted == shape]
        one = next((one for one in self._open.values() if one.left and one.configuration.family in families), None)
        if one is None:
            one = self._opened(families)
            if one is None:
                return None
            if not one.left:  # everything of it had been recorded
                self._ended(one.configuration, [])
                return self._next(shape)
        to_come = int(self._events[list(one.left)].sum()) + len(self._searcher.queue) * int(self._events.sum())
        most = max(LEAST_JOB_EVENTS, to_come / (JOBS_AHEAD * self._workers))
        chosen, events = [one.left.popleft()], 0
        events += int(self._events[chosen[0]])
        while one.left and events + self._events[one.left[0]] <= most:
            events += int(self._events[one.left[0]])
            chosen.append(one.left.popleft())
        return Batch(one.configuration, tuple(chosen))

    def _opened(self, families: list[str]) -> _Open | None:
        configuration = self._searcher.suggest(families)
        if configuration is None:
            return None
        name = _name(configuration)
        known = self._results.results.get(name, {})
        params = self._results.params.get(name, configuration.params or {})
        configuration = Configuration(configuration.family, configuration.number, params)
        record = TrialRecord(name, configuration.family, configuration.number, params)
        left = deque(place for place, segment in enumerate(self._segments.names) if segment not in known)
        one = self._open[name] = _Open(configuration, record, left, len(left))
        self._journal.trials[name] = record
        self._told()
        return one

    def _ended(self, configuration: Configuration, results: list[Result]) -> None:
        name = _name(configuration)
        one = self._open[name]
        if results:
            self._results.write(name, configuration.params or {}, results)
            one.missing -= len(results)
            self._sum_up(name, one.record)
        if not one.missing:
            del self._open[name]
            self._summed(name, one.record, "done")
            self._searcher.tell(one.configuration, one.record.value)
        self._told()

    def _sum_up(self, name: str, record: TrialRecord) -> None:
        found = [result for result in self._results.results.get(name, {}).values() if "value" in result]
        if not found:
            return
        cases = np.array([result["cases"] for result in found], np.float64)
        record.metrics = {
            metric: float(cases @ [result["metrics"][metric] for result in found] / cases.sum())
            for metric in found[0]["metrics"]
        }
        record.value = record.metrics[str(self._sweep.metric)]
        record.fit_s = sum(result["fit_s"] for result in found)
        record.evaluate_s = sum(result["evaluate_s"] for result in found)
        record.bytes = sum(result["bytes"] or 0 for result in found)
        record.wall_s = record.fit_s + record.evaluate_s

    def _summed(self, name: str, record: TrialRecord, state: Any) -> None:
        self._sum_up(name, record)
        errors = [result for result in self._results.results.get(name, {}).values() if result.get("error")]
        record.state = state
        if errors:
            record.note = f"{len(errors)} segments failed, the first ({errors[0]['segment']}): {errors[0]['error']}"
            if record.value is None and state == "done":
                record.state, record.error = "failed", record.note
        self._journal.write(record)


def best_by_segment(segments: Segments, results: SegmentJournal) -> list[dict[str, Any]]:
    """Of each segment, the largest first: events, the best trial with its value and cases, or why there is none."""
    found = []
    for place, name in enumerate(segments.names):
        tried = {trial: held[name] for trial, held in sorted(results.results.items()) if name in held}
        valued = {trial: result for trial, result in tried.items() if "value" in result}
        best = max(valued, key=lambda trial: valued[trial]["value"], default=None)
        entry: dict[str, Any] = {"segment": name, "number": place, "events": int(segments.sizes[place])}
        if best is not None:
            entry |= {"best": best} | {key: valued[best][key] for key in ("value", "cases", "bytes")}
        else:
            entry |= {"best": None, "error": next((result["error"] for result in tried.values()), "not reached")}
        found.append(entry)
    return found


def _name(configuration: Configuration) -> str:
    return trial_name(configuration.family, configuration.number)
