"""`report.html` of a sweep: one file without anything from elsewhere, plots as SVG."""

import html
import math
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from tune.ablation import cells
from tune.journal import TrialRecord, ranked
from tune.objective import MB

if TYPE_CHECKING:
    from tune.report import SweepReport

MOST_ROWS = 500  # of a table; the rest stands in leaderboard.json
STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .7em;text-align:left;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr.best{font-weight:600}
h2{margin-top:1.8em}svg{max-width:100%;height:auto}.note{color:#666}"""
SAYS = {
    "fit_s": "fitting",
    "evaluate_s": "evaluation",
    "measure_s": "latency and size measured",
    "save_s": "models saved",
    "prepare_s": "data of segments cut out",
    "start_s": "lost: workers starting",
    "data_s": "lost: data fetched and copied",
    "report_s": "lost: results and decisions on their way",
    "idle_s": "lost: no trial to do",
}


def page(report: "SweepReport") -> str:
    """The whole page."""
    parts = [
        _facts(report),
        _section("Leaderboard", _leaderboard(report)),
        _section("Learning curves", _curves(report.trials, report.metric)),
        _section("Parameters and outcome", *_parallel(report.trials, report.metric)),
        _section("Quality against latency and size", _costs(report.trials, report.metric)),
        _section("Segments", _segments(report.segments)),
        _section("Stages of the bundle's chain", _stages(report.package)),
        _section("Where the time went", _losses(report.losses), _steps(report.seconds)),
    ]
    title = html.escape(f"Sweep {report.id}")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<h1>{title}</h1>\n" + "\n".join(part for part in parts if part) + "</html>\n"


def _section(title: str, *parts: str) -> str:
    """Nothing where there is nothing to show."""
    shown = "".join(part for part in parts if part)
    return f"<h2>{html.escape(title)}</h2>\n{shown}" if shown else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]], best: Iterable[int] = ()) -> str:
    """Numbers stand to the right; rows whose place is in `best` are bold."""
    bold, found = set(best), list(rows)
    if not found:
        return ""
    right = [any(isinstance(row[n], int | float) for row in found) for n in range(len(columns))]
    kinds = [' class="n"' if one else "" for one in right]
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = []
    for place, row in enumerate(found):
        cells = "".join(f"<td{kind}>{html.escape(_text(cell))}</td>" for cell, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{' class=best' if place in bold else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>\n"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(report: "SweepReport") -> str:
    order = (
        "Order mattered: results may differ at another parallelism (early stop, a search that learns, or measured "
        "latency); max_concurrent: 1 makes the former repeatable."
        if report.order_mattered
        else "Order did not matter: the same configuration, seed and data give this leaderboard at any parallelism."
    )
    rows = [
        ("metric", report.metric),
        ("trials", len(report.trials)),
        ("seed", str(report.seed)),
        ("snapshot", report.snapshot),
        ("data", report.data_hash),
        ("bundle", report.bundle or "none"),
    ]
    return _table(["", ""], rows) + f'<p class="note">{order}</p>'


def _leaderboard(report: "SweepReport") -> str:
    best = {trial.name for trial in report.best.values()}
    trials = ranked(report.trials)[:MOST_ROWS]
    columns = [
        "#",
        "trial",
        "value",
        report.metric,
        "fit s",
        "evaluation s",
        "passes",
        "ms",
        "MB",
        "state",
        "parameters",
    ]
    rows = [
        (
            place,
            trial.name,
            trial.value,
            trial.metrics.get(report.metric),
            round(trial.fit_s, 2),
            round(trial.evaluate_s, 2),
            max((done for done, _ in trial.passes), default=None),
            None if trial.latency_ms is None else round(trial.latency_ms, 3),
            None if trial.bytes is None else round(trial.bytes / MB, 3),
            trial.state,
            _said(trial),
        )
        for place, trial in enumerate(trials, 1)
    ]
    return _table(columns, rows, [place for place, trial in enumerate(trials) if trial.name in best])


def _said(trial: TrialRecord) -> str:
    params = ", ".join(f"{name}={_text(value)}" for name, value in trial.params.items()) or "defaults"
    again = f" ({trial.attempts} attempts)" if trial.attempts > 1 else ""
    wrong = trial.error or trial.note
    return f"{params}{again}" + (f": {wrong}" if wrong else "")


def _curves(trials: Sequence[TrialRecord], metric: str) -> str:
    several = [trial for trial in trials if trial.passes]
    if not several:
        return ""
    figure, (axes,) = _figure(1)
    colours = _colours(several)
    for trial in several:
        curve = sorted(trial.passes)
        passes, values = [done for done, _ in curve], [value for _, value in curve]
        axes.plot(passes, values, marker="o", markersize=3, color=colours[trial.family], alpha=0.7)
    _legend(axes, colours)
    axes.set_xlabel("pass")
    axes.set_ylabel(metric)
    return _svg(figure)


def _parallel(trials: Sequence[TrialRecord], metric: str) -> list[str]:
    """One plot a family: a line a trial over its parameters, each from its least to its greatest, and the value."""
    drawn = []
    for family in dict.fromkeys(trial.family for trial in trials):
        own = [t for t in ranked(trials) if t.family == family and t.value is not None and t.params]
        names = [name for name in dict.fromkeys(name for t in own for name in t.params) if _varies(own, name)]
        if len(own) < 2 or not names:
            continue
        figure, (axes,) = _figure(1)
        scales = [_scale([t.params.get(name) for t in own]) for name in names]
        scales.append(_scale([t.value for t in own]))
        for place, trial in reversed(list(enumerate(own))):
            heights = [
                scale[0].get(repr(trial.params.get(name)), math.nan) for name, scale in zip(names, scales, strict=False)
            ]
            heights.append(scales[-1][0][repr(trial.value)])
            share = 1.0 - place / max(len(own) - 1, 1)
            axes.plot(range(len(heights)), heights, color=(1 - share, 0.25, share), alpha=0.35 + 0.5 * share)
        labels = [f"{name}\n{low} … {high}" for name, (_, low, high) in zip([*names, metric], scales, strict=True)]
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set_yticks([])
        axes.grid(axis="x", alpha=0.4)
        axes.set_title(f"{family}: blue lines are the best of {len(own)} trials")
        drawn.append(_svg(figure))
    return drawn


def _varies(trials: Sequence[TrialRecord], name: str) -> bool:
    return len({repr(trial.params.get(name)) for trial in trials}) > 1


def _scale(values: Sequence[Any]) -> tuple[dict[str, float], str, str]:
    """(height from 0 to 1 by value, what is at the bottom, what at the top); numbers by size, else in order."""
    held = {repr(value): value for value in values if value is not None}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in held.values())
    order = sorted(held.values(), key=None if numbers else repr)
    if numbers and order:
        low, high = float(order[0]), float(order[-1])
        wide = low > 0 and high / low > 20  # over more than an order of magnitude: by the logarithm
        ends = (math.log(low), math.log(high)) if wide else (low, high)
        span = (ends[1] - ends[0]) or 1.0
        heights = {key: ((math.log(value) if wide else value) - ends[0]) / span for key, value in held.items()}
    else:
        heights = {repr(value): place / max(len(order) - 1, 1) for place, value in enumerate(order)}
    return heights, _text(order[0]) if order else "", _text(order[-1]) if order else ""


def _costs(trials: Sequence[TrialRecord], metric: str) -> str:
    timed = [trial for trial in trials if trial.latency_ms is not None and metric in trial.metrics]
    sized = [trial for trial in trials if trial.bytes and metric in trial.metrics]
    if not timed and not sized:
        return ""
    figure, (left, right) = _figure(2)
    colours = _colours([*timed, *sized])
    for axes, label, points in (
        (left, "ms for one user's candidates", [(trial, trial.latency_ms or 0.0) for trial in timed]),
        (right, "MB", [(trial, (trial.bytes or 0) / MB) for trial in sized]),
    ):
        for trial, cost in points:
            axes.scatter([cost], [trial.metrics[metric]], color=colours[trial.family], alpha=0.7)
        if len(points) > 1 and min(cost for _, cost in points) > 0:
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel(metric)
    _legend(left, colours)
    return _svg(figure)


def _segments(segments: Sequence[dict[str, Any]]) -> str:
    columns = ["segment", "events", "cases", "best trial", "value", "bytes", "folder"]
    rows = [
        (
            one["segment"],
            one["events"],
            one.get("cases"),
            one["best"] or one.get("error"),
            one.get("value"),
            one.get("bytes"),
            f"models/segment-{one['number']:05d}" if one["best"] else "",
        )
        for one in segments[:MOST_ROWS]
    ]
    more = f'<p class="note">{len(segments) - MOST_ROWS} more in leaderboard.json</p>'
    return _table(columns, rows) + (more if len(segments) > MOST_ROWS else "")


def _stages(package: dict[str, Any]) -> str:
    """What each stage contributes, with 95 % intervals; the chain's row is bold."""
    found = package.get("ablation", [])
    if not found:
        return ""
    search = package.get("search", {})
    cut = " (the budget cut that short)" if search.get("cut") else ""
    single = next(row["stage"] for row in found if row["difference"] is None)
    note = (
        f"Chosen among {search.get('mixes', 0)} mixes{cut}, on the validation cases that these figures are of: the "
        f"chosen chain's own are a little too good. Differences are paired by case, to {single}, with 95 % intervals, "
        "users drawn together."
    )
    columns, rows = cells(found)
    chain = [place for place, row in enumerate(found) if row["kind"] == "chain"]
    return f'<p class="note">{html.escape(note)}</p>' + _table(columns, rows, chain)


def _losses(losses: dict[str, float]) -> str:
    whole = sum(losses.get(name, 0.0) for name in SAYS)
    if not whole:
        return ""
    rows = [
        (said, round(losses.get(name, 0.0), 2), f"{losses.get(name, 0.0) / whole:.1%}") for name, said in SAYS.items()
    ]
    told = f"{losses['workers']:.0f} workers for {losses['wall_s']:.1f} s"
    cost = f", at a cost of {losses['cost']:.4g}" if losses.get("cost") else ""
    return f"<p>{told}{cost}</p>" + _table(["seconds of workers", "s", "share"], rows)


def _steps(seconds: dict[str, float]) -> str:
    return _table(["step", "s"], [(name, round(value, 2)) for name, value in seconds.items()])


def _figure(wide: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, wide, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, list(axes)


def _colours(trials: Sequence[TrialRecord]) -> dict[str, str]:
    return {family: f"C{place % 10}" for place, family in enumerate(dict.fromkeys(t.family for t in trials))}


def _legend(axes: Axes, colours: dict[str, str]) -> None:
    for family, colour in colours.items():
        axes.plot([], [], color=colour, label=family)
    axes.legend(frameon=False, fontsize=8)


def _svg(figure: Figure) -> str:
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
