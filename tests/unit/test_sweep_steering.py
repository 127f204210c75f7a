"""What a sweep keeps and how it is steered, without Ray: the journal, ASHA's rungs, who runs next."""

from pathlib import Path
from typing import Any

import numpy as np

from app.settings import Settings
from tune.ablation import Stage, ablation
from tune.journal import Journal, TrialRecord, best_by_family, ranked
from tune.report import SweepReport, write_report
from tune.rungs import FamilyScheduler
from tune.space import SweepFile, parse_sweep
from tune.steering import SweepSearcher
from tune.trial import Rungs


def sweep() -> SweepFile:
    families = {"ials": {"samples": 4}, "popularity": {"samples": 2}}
    return parse_sweep({"name": "s", "families": families, "search": "random"}, "s.yaml", Settings())


def record(name: str, value: float | None, state: Any = "done", **more: Any) -> TrialRecord:
    family, number = name.rsplit("-", 1)
    return TrialRecord(name, family, int(number), {}, state=state, value=value, **more)


def test_the_journal_survives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    journal.write(record("ials-000", 0.1, passes=[(1, 0.05), (3, 0.1)], metrics={"ndcg_at_10": 0.1}))
    journal.write(record("ials-001", 0.2, state="running"))
    with journal.file.open("ab") as file:
        file.write(b'\n{"name": "ials-002", "fam')
    again = Journal(journal.file)
    again.write(record("ials-003", None, state="failed", error="diverged"))
    last = Journal(journal.file)
    assert [trial.name for trial in last.finished] == ["ials-000", "ials-003"]
    assert last.trials["ials-000"] == record("ials-000", 0.1, passes=[(1, 0.05), (3, 0.1)], metrics={"ndcg_at_10": 0.1})


def test_ranking_puts_failures_last_and_cut_trials_win_nothing() -> None:
    trials = [record("a-0", None, "failed"), record("a-1", 0.1), record("a-2", 0.3, "cut"), record("b-0", 0.2)]
    assert [trial.name for trial in ranked(trials)] == ["a-2", "b-0", "a-1", "a-0"]
    assert {family: trial.name for family, trial in best_by_family(trials).items()} == {"b": "b-0", "a": "a-1"}


def test_finished_trials_are_not_handed_out_again() -> None:
    searcher = SweepSearcher(sweep(), [record("ials-000", 0.1), record("popularity-001", 0.2)])
    assert searcher.planned == 6
    found = [searcher.suggest(["ials", "popularity"]) for _ in range(4)]
    assert [(one.family, one.number) for one in found if one] == [
        ("popularity", 0),
        ("ials", 1),
        ("ials", 2),
        ("ials", 3),
    ]
    assert searcher.suggest(["ials", "popularity"]) is None


def test_rungs_are_rebuilt_from_recorded_passes() -> None:
    assert not FamilyScheduler(sweep(), []).stops("ials", 9, 1, 0.01)
    recorded = [record(f"ials-{n}", 0.1 * n, passes=[(1, 0.1 * n)]) for n in range(3)]
    scheduler = FamilyScheduler(sweep(), recorded)
    assert scheduler.stops("ials", 8, 1, 0.01)
    assert not scheduler.stops("ials", 9, 1, 0.5)
    assert not scheduler.stops("ials", 8, 2, 0.0)  # no rung
    live = FamilyScheduler(sweep(), [])
    decided = [live.stops("ials", n, 1, value) for n, value in enumerate((0.3, 0.1, 0.2, 0.4))]
    assert decided == [False, True, True, False]
    assert decided[2:] == [
        FamilyScheduler(sweep(), [record(f"ials-{n}", v, passes=[(1, v)]) for n, v in enumerate(seen)]).stops(
            "ials", len(seen), 1, value
        )
        for seen, value in (((0.3, 0.1), 0.2), ((0.3, 0.1, 0.2), 0.4))
    ]


def test_rungs_are_grace_times_powers_of_the_reduction() -> None:
    assert [done for done in range(1, 40) if done in Rungs(2, 3)] == [2, 6, 18]
    assert [done for done in range(1, 20) if done in Rungs(1, 2.5)] == [1, 3, 7, 16]


def test_the_report_is_page_table_json_and_plot(tmp_path: Path) -> None:
    params = [{"l2": 1.0, "kind": "a"}, {"l2": 50.0, "kind": "b<i>"}]
    more = {"passes": [(1, 0.05), (3, 0.1)], "metrics": {"ndcg_at_10": 0.1}, "latency_ms": 0.4, "bytes": 2_000_000}
    trials = [record(f"ials-00{n}", 0.1 + n / 10, **more) for n in range(2)]
    for trial, own in zip(trials, params, strict=True):
        trial.params = own
    trials.append(record("ease-000", None, "failed", error="no <room>"))
    losses = {"workers": 2, "wall_s": 10.0, "fit_s": 15.0, "start_s": 4.0, "idle_s": 1.0}
    segments = [{"segment": "is", "number": 0, "events": 900, "best": "ials-000", "value": 0.4, "cases": 9, "bytes": 7}]
    worth = {"ndcg_at_10": np.array([0.0, 0.5]), "recall_at_20": np.array([0.0, 1.0])}
    better = {name: values + 0.25 for name, values in worth.items()}
    stages = ablation(
        [Stage("ials alone", "alone", worth), Stage("ials & more", "chain", better)], np.arange(2), "ndcg_at_10"
    )
    report = SweepReport(
        "s-1",
        tmp_path,
        "ndcg_at_10",
        0,
        "x",
        "h",
        trials,
        {"ials": trials[1]},
        {"data": 1.0},
        "b-1",
        {"metric": "ndcg_at_10", "search": {"mixes": 7, "cut": True}, "ablation": stages},
        True,
        losses,
        segments,
    )
    write_report(report)
    assert "ials-000" in (tmp_path / "leaderboard.txt").read_text()
    assert '"bundle": "b-1"' in (tmp_path / "leaderboard.json").read_text()
    assert (tmp_path / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    for heading in (
        "Leaderboard",
        "Learning curves",
        "Parameters and outcome",
        "Quality against latency and size",
        "Segments",
        "Stages of the bundle",
        "Where the time went",
    ):
        assert f"<h2>{heading}" in page
    assert "<tr class=best><td>ials &amp; more</td><td>0.5000 [0.2500, 0.7500]</td><td>+0.2500 [" in page
    assert "among 7 mixes (the budget cut that short)" in page
    assert page.count("<svg") == 3
    assert "no &lt;room&gt;" in page
    assert "<i>" not in page
    assert "<room>" not in page
    assert "Order mattered" in page
    assert '<td>lost: workers starting</td><td class="n">4</td><td>20.0%</td>' in page
    for outside in ("<script", "src=", 'rel="stylesheet"', "@import"):
        assert outside not in page
