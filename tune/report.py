"""What a sweep shows: a live table on the terminal, and a leaderboard as text, JSON and plot."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tune.journal import TrialRecord, best_by_family, ranked
from tune.report_page import page


@dataclass(frozen=True, slots=True)
class SweepState:
    """A sweep under way: `step` names what it is at, `planned` counts the trials that it will have run."""

    sweep: str
    step: str
    metric: str
    planned: int
    trials: Sequence[TrialRecord]

    @property
    def ended(self) -> int:
        """Trials that have ended, however."""
        return sum(trial.state != "running" for trial in self.trials)


Watch = Callable[[SweepState], None]


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        id: name under `$MANTA_HOME/sweeps/`.
        folder: its folder; `report.html` and `leaderboard.{txt,json,png}` lie there.
        best: the best trial of each family, best family first.
        seconds: wall time by step (`data`, `trials`, `package`).
        bundle: the bundle it registered; None: it was asked not to.
        package: the bundle's figures (mix, ablation), empty without one.
        order_mattered: whether results may depend on how many trials ran at once (early stopping, Optuna).
        losses: workers, wall time, and the seconds of all workers by what they went into (`tune.losses`).
        segments: of a sweep by segment the best model of each, largest segment first.
    """

    id: str
    folder: Path
    metric: str
    seed: int
    snapshot: str
    data_hash: str
    trials: list[TrialRecord]
    best: dict[str, TrialRecord]
    seconds: dict[str, float]
    bundle: str | None
    package: dict[str, Any]
    order_mattered: bool
    losses: dict[str, float] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """`leaderboard.json`."""
        return {
            "sweep": self.id,
            "metric": self.metric,
            "seed": self.seed,
            "snapshot": self.snapshot,
            "data_hash": self.data_hash,
            "order_mattered": self.order_mattered,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "losses": self.losses,
            "segments": self.segments,
            "bundle": self.bundle,
            "package": self.package,
            "best": {family: trial.name for family, trial in self.best.items()},
            "leaderboard": [asdict(trial) for trial in ranked(self.trials)],
        }


def write_report(report: SweepReport) -> None:
    """Writes `report.html`, `leaderboard.txt`, `leaderboard.png` and at last `leaderboard.json` into the folder."""
    (report.folder / "report.html").write_text(page(report))
    (report.folder / "leaderboard.txt").write_text(as_text(leaderboard(report.trials, report.metric)))
    plot(report, report.folder / "leaderboard.png")
    beside = report.folder / "leaderboard.json.tmp"
    beside.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    beside.rename(report.folder / "leaderboard.json")


def leaderboard(trials: Sequence[TrialRecord], metric: str, limit: int | None = None) -> Table:
    """The trials as a table, best first."""
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("#", "trial", metric, "fit s", "passes", "state", "parameters"):
        justify: Literal["left", "right"] = "right" if name in ("#", metric, "fit s", "passes") else "left"
        table.add_column(name, justify=justify, no_wrap=name != "parameters")  # what is too wide wraps there alone
    best = {trial.name for trial in best_by_family(trials).values()}
    for place, trial in enumerate(ranked(trials)[:limit], 1):
        value = "" if trial.value is None else f"{trial.value:.4f}"
        passes = str(max((done for done, _ in trial.passes), default=0) or "")
        said = trial.error or ", ".join(f"{name}={_short(found)}" for name, found in trial.params.items()) or "defaults"
        style = "bold" if trial.name in best else None
        table.add_row(str(place), trial.name, value, f"{trial.fit_s:.1f}", passes, trial.state, said, style=style)
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_text(table: Table) -> str:
    """A table as plain text."""
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(table)
    file = console.file
    assert isinstance(file, StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


@contextmanager
def live(console: Console) -> Iterator[Watch]:
    """Shows a sweep as it goes: a bar, and the best trials so far. Without a terminal: one line per ended trial."""
    if not console.is_terminal:
        yield _lines(console)
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    task = bar.add_task("sweep", total=None)
    with Live(bar, console=console, refresh_per_second=4, transient=False) as shown:

        def watch(state: SweepState) -> None:
            bar.update(task, description=f"{state.sweep}: {state.step}", total=state.planned, completed=state.ended)
            shown.update(Group(leaderboard(state.trials, state.metric, limit=12), bar))

        yield watch


def _lines(console: Console) -> Watch:
    told: set[str] = set()

    def watch(state: SweepState) -> None:
        if state.step not in told:
            told.add(state.step)
            console.print(f"{state.sweep}: {state.step}", highlight=False)
        for trial in state.trials:
            if trial.state != "running" and trial.name not in told:
                told.add(trial.name)
                value = "" if trial.value is None else f" {state.metric} {trial.value:.4f}"
                said = f": {trial.error}" if trial.error else f" in {trial.fit_s:.1f} s"
                done = f"{state.ended}/{state.planned}"
                console.print(f"{done} {trial.name} {trial.state}{value}{said}", highlight=False)

    return watch


def plot(report: SweepReport, file: Path) -> None:
    """Left: every trial's value by family. Right: value after each pass of the iterative families."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    families = list(dict.fromkeys([*report.best, *sorted(trial.family for trial in report.trials)]))
    colours = {family: f"C{place % 10}" for place, family in enumerate(families)}
    for place, family in enumerate(reversed(families)):
        values = [t.value for t in report.trials if t.family == family and t.value is not None]
        left.scatter(values, [place] * len(values), color=colours[family], alpha=0.7)
    left.set_yticks(range(len(families)), list(reversed(families)))
    left.set_xlabel(report.metric)
    left.set_title(f"{report.id}: {len(report.trials)} trials")
    left.grid(axis="x", alpha=0.3)
    curves = [trial for trial in report.trials if trial.passes]
    for trial in curves:
        curve = sorted(trial.passes)
        right.plot(
            [done for done, _ in curve],
            [value for _, value in curve],
            marker="o",
            markersize=3,
            color=colours[trial.family],
            alpha=0.7,
        )
    for family in dict.fromkeys(trial.family for trial in curves):
        right.plot([], [], color=colours[family], label=family)
    if curves:
        right.legend(frameon=False)
        if max(done for trial in curves for done, _ in trial.passes) > 8:
            right.set_xscale("log", base=2)
    right.set_xlabel("pass")
    right.set_ylabel(report.metric)
    right.set_title("learning curves" if curves else "no iterative family")
    right.grid(alpha=0.3)
    finite = [trial.value for trial in report.trials if trial.value is not None and math.isfinite(trial.value)]
    if finite:
        left.set_xlim(left=min(0.0, *finite))
    figure.savefig(file, dpi=110)
