"""What a sweep has found so far, on disk as it comes: one JSON line per result, each flushed before the next."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.errors import MantaError

State = Literal["running", "done", "stopped", "failed", "cut"]
# Trials that a resumed sweep does not run again; `cut` (by the budget or an interruption) and `running` ones it does.
FINISHED = frozenset({"done", "stopped", "failed"})


def trial_name(family: str, number: int) -> str:
    """`ease-003`: how a trial is called everywhere."""
    return f"{family}-{number:03d}"


@dataclass(slots=True)
class TrialRecord:
    """One trial. `value` is what the sweep maximises; `passes` lists (pass, value) of an iterative family, from 1.

    `latency_ms`: the median of one user's retrieval. `wall_s`: seconds that a worker was held; `cost`: of these, by the
    sweep's prices. `attempts`: how often it was begun. `note`: what went wrong beside the result.
    States: running; done; stopped (by the scheduler); failed (`error` says why); cut (by budget or interruption).
    """

    name: str
    family: str
    number: int
    params: dict[str, Any]
    state: State = "running"
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    passes: list[tuple[int, float]] = field(default_factory=list)
    fit_s: float = 0.0
    evaluate_s: float = 0.0
    bytes: int | None = None
    error: str | None = None
    latency_ms: float | None = None
    wall_s: float = 0.0
    cost: float = 0.0
    attempts: int = 1
    note: str | None = None

    def take(self, result: dict[str, Any]) -> None:
        """Takes over a report of the trial."""
        if result.get("error"):
            self.error = str(result["error"])
            return
        self.value = float(result["value"])
        self.metrics = {name: float(value) for name, value in result["metrics"].items()}
        self.fit_s, self.evaluate_s = float(result["fit_s"]), float(result["evaluate_s"])
        self.bytes = result.get("bytes") or self.bytes
        self.latency_ms = result.get("latency_ms")
        self.note = result.get("note")
        if result["pass"]:
            self.passes = [entry for entry in self.passes if entry[0] != result["pass"]]
            self.passes.append((int(result["pass"]), self.value))


class Journal:
    """The file `trials.jsonl` of a sweep's folder; the last line of a trial counts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.trials: dict[str, TrialRecord] = {}
        for found in read_lines(file):
            found["passes"] = [(int(done), float(value)) for done, value in found["passes"]]
            self.trials[found["name"]] = TrialRecord(**found)

    def write(self, record: TrialRecord) -> None:
        """Puts the trial as it stands on disk.

        Raises:
            MantaError: it cannot be written (a full disk); lines that stand there are not harmed.
        """
        self.trials[record.name] = record
        append_line(self.file, asdict(record))

    @property
    def finished(self) -> list[TrialRecord]:
        """Trials that need not run again, in the order of their names."""
        return [self.trials[name] for name in sorted(self.trials) if self.trials[name].state in FINISHED]


def append_line(file: Path, document: Any) -> None:
    """Adds a line of JSON and waits until it is on disk. A torn last line gets its end first: this one stands alone.

    Raises:
        MantaError: it cannot be written (a full disk).
    """
    try:
        with file.open("ab") as opened:
            start = b"\n" if opened.tell() else b""
            opened.write(start + json.dumps(document).encode())
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        again = f"what it holds stays, and `--resume {file.parent.name}` goes on from there"
        raise MantaError(f"{file}: found {error.strerror or error}, wanted room for a result: {again}") from error


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The documents of a file that `append_line` wrote; lines that a kill or a full disk tore are passed over."""
    if not file.exists():
        return
    for line in file.read_bytes().split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def ranked(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Best value first; equal values by name; those without a value at the end."""
    return sorted(trials, key=lambda t: (t.value is None, -(t.value or 0.0), t.name))


def best_by_family(trials: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """The best finished trial of each family, best family first; failed ones and those cut short do not count."""
    best: dict[str, TrialRecord] = {}
    for trial in ranked(trials):
        if trial.state in ("done", "stopped") and trial.value is not None:
            best.setdefault(trial.family, trial)
    return best
