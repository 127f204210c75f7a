"""A sweep on Ray: head and driver killed -9, resumed without running a finished trial again, ending in a bundle."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import yaml

from app.bundles.judged import JUDGED, Judged
from app.bundles.load import load_bundle
from app.bundles.registry import open_registry
from app.errors import MantaError, NotFound, SettingsError
from app.events.columns import EVENT_COLUMNS
from app.events.entities import ENTITY_COLUMNS
from app.events.schema import EVENTS, ITEMS
from app.lake.commit import Progress, append, replace
from app.lake.tables import open_lake
from app.models.families import load_model
from app.models.interactions import Histories
from app.settings import Settings
from deployments.cluster import attach
from tune.dataset import load_training_set
from tune.journal import Journal, TrialRecord
from tune.promote import promote
from tune.report import SweepReport
from tune.sweep import NothingFound, run_sweep
from tune.together import fit_together_task
from tune.trial import refit

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

SWEEP = {
    "name": "tiny",
    "search": "random",
    "cpus": 0.5,
    "families": {
        "ials": {"samples": 14, "space": {"n_factors": [4, 8], "l2": {"loguniform": [0.1, 10]}}},
        "popularity": {"samples": 5},
        "vector": {"samples": 1},
        "content": {"samples": 1},
        "ease": {"samples": 2, "space": {"memory_limit_bytes": [1]}},
    },
}
N_ITEMS, N_USERS, N_EVENTS, N_TRIALS = 60, 50, 2400, 23


@pytest.fixture(scope="module")
def system(short_home: Path) -> Iterator[tuple[Settings, Path, Path]]:
    """(settings, home, sweep file) of a home with a lake, a sweep whose head was killed, and another, running Ray."""
    learn = {"session_gap_s": 7200.0, "extra_features": ["session", "session_content", "session_idle"]}
    learn["event_weights"] = {"rating": {"log1p": True, "cap_s": 5000}, "click": 1}
    settings = Settings.model_validate(
        {"ray": {"num_cpus": 2}, "surfaces": {"home": {"candidates": 40}}, "learn": learn}
    )
    (short_home / "manta.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    file = short_home / "tiny.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    fill_lake(settings, short_home)
    headless_in_the_middle(short_home, file)
    with attach(settings, short_home, needs_broker=False, ends=True, say=print) as attached:
        yield attached.settings, short_home, file


def look_of(row: int) -> list[float]:
    """A vector of the item's genre."""
    return [float(row % 3 == place) + 0.01 * (row % 7) for place in range(3)]


def fill_lake(settings: Settings, home: Path) -> None:
    """Users who walk through the items of one genre."""
    random = np.random.default_rng(0)
    events, place = [], random.integers(0, N_ITEMS, N_USERS)
    for offset in range(N_EVENTS):
        user = int(random.integers(N_USERS))
        place[user] = (place[user] + 3 * int(random.integers(1, 3))) % N_ITEMS
        event = {"event_id": f"e{offset}", "user_id": f"u{user}", "item_id": f"i{place[user]}", "event_type": "rating"}
        stamp = 1_700_000_000_000_000 + offset * 60_000_000
        events.append(event | {"event_time": stamp, "record_time": stamp, "partition": 0, "offset": offset})
    items = [
        {
            "item_id": f"i{row}",
            "available": row != 7,
            "columns": json.dumps(
                {"title": f"Item {row}", "genres": [f"g{row % 3}"], "year": 1990 + row % 20, "look": look_of(row)}
            ),
        }
        for row in range(N_ITEMS)
    ]
    lake = open_lake(settings, home)
    append(lake.table(EVENTS), pa.Table.from_pylist(events, EVENT_COLUMNS), Progress(), max_open_partitions=10)
    replace(lake.table(ITEMS), pa.Table.from_pylist(items, ENTITY_COLUMNS[ITEMS]), Progress())


def lines_by_trial(folder: Path) -> Counter[str]:
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["name"] for line in lines if line.endswith("}"))


def manta_sweep(home: Path, *words: str) -> "subprocess.Popen[bytes]":
    """`manta sweep` in a process of its own; what it says goes to `driver.log`."""
    environment = os.environ | {"MANTA_HOME": str(home), "MANTA_SETTINGS": str(home / "manta.yaml")}
    command = [sys.executable, "-m", "scripts.cli", "sweep", *words]
    with (home / "driver.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finished(home: Path, driver: "subprocess.Popen[bytes]", name: str, least: int) -> Path:
    """The folder of the sweep NAME-… once so many trials have finished; the driver still runs."""
    deadline = time.monotonic() + 200
    while driver.poll() is None and time.monotonic() < deadline:
        for folder in (home / "sweeps").glob(f"{name}-*"):
            if (folder / "trials.jsonl").exists() and len(Journal(folder / "trials.jsonl").finished) >= least:
                return folder
        time.sleep(0.01)
    raise AssertionError((home / "driver.log").read_text()[-3000:])


def headless_in_the_middle(home: Path, file: Path) -> Path:
    """Runs `manta sweep` on a Ray of its own, and kills that Ray's head -9 after a few finished trials; the folder.

    By nothing that this process has joined: Ray ends every process that its head has gone from.
    """
    driver = manta_sweep(home, str(file))
    try:
        folder = finished(home, driver, "tiny", 3)
        head = psutil.Process(int(json.loads((home / "run.json").read_text())["ray"]["pid"]))
        shown = {" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])}
        for process in (head, *head.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert driver.wait(200) == 1
        said = (home / "driver.log").read_text()
        # The latter is Ray's: a call that was under way when the head died ends the process after a minute.
        assert f"`--resume {folder.name}` goes on from there" in said or "GCS may have been killed" in said
        assert any(line.startswith("ray::Trial ") for line in shown), shown
        return folder
    finally:
        driver.kill()
        driver.wait()


def finished_trials(folder: Path) -> dict[str, TrialRecord]:
    return {trial.name: trial for trial in Journal(folder / "trials.jsonl").finished}


def test_a_killed_sweep_resumes_and_ends_in_a_bundle(system: tuple[Settings, Path, Path]) -> None:
    settings, home, file = system
    (folder,) = (home / "sweeps").glob("tiny-*")  # its head was killed
    headless = finished_trials(folder)
    assert 3 <= len(headless) < N_TRIALS
    driver = manta_sweep(home, "--resume", folder.name)
    try:
        finished(home, driver, "tiny", len(headless) + 3)
    finally:
        driver.kill()
        driver.wait()
    before, lines = finished_trials(folder), lines_by_trial(folder)
    assert headless.items() <= before.items()
    assert len(before) < N_TRIALS

    report = run_sweep(settings, home, file, folder.name)

    assert report.id == folder.name
    assert len(report.trials) == N_TRIALS
    after = {trial.name: trial for trial in report.trials}
    for name, trial in before.items():
        assert after[name] == trial
        assert lines_by_trial(folder)[name] == lines[name], f"{name} ran again"
    assert {trial.name for trial in report.trials if trial.state == "failed"} == {"ease-001"}
    assert "wanted at most memory_limit_bytes" in str(after["ease-001"].error)
    for name in ("leaderboard.json", "leaderboard.txt", "leaderboard.png", "report.html"):
        assert (folder / name).stat().st_size > 100
    board = json.loads((folder / "leaderboard.json").read_text())
    assert board["best"].keys() == report.best.keys()
    stages = board["package"]["ablation"]
    assert {row["stage"] for row in stages if row["kind"] == "alone"} == {f"{name} alone" for name in report.best}
    (chain,) = [row for row in stages if row["kind"] == "chain"]
    assert chain["metrics"]["ndcg_at_10"]["ci95"][0] < chain["metrics"]["ndcg_at_10"]["ci95"][1]
    assert board["package"]["search"]["mixes"] >= len(report.best)
    assert "<h2>Stages of the bundle" in (folder / "report.html").read_text()

    registry = open_registry(settings, home)
    assert report.bundle is not None
    assert [row.id for row in registry.bundles()] == [report.bundle]
    assert registry.aliases().live == {}
    bundle = load_bundle(registry.bundle(report.bundle).folder)
    manifest = bundle.manifest
    assert (manifest.sweep, manifest.data_hash) == (folder.name, load_training_set(settings, home).data_hash)
    assert sum(one["cases"] for one in manifest.segments.values()) == manifest.validation.cases
    judged = Judged.load(bundle.folder / JUDGED)
    assert judged.values["ndcg_at_10"].mean() == pytest.approx(manifest.metrics["ndcg_at_10"], abs=1e-6)
    assert bundle.manifest.metrics["ndcg_at_10"] == pytest.approx(chain["metrics"]["ndcg_at_10"]["value"])
    assert bundle.mix == tuple((name, k) for name, k in board["package"]["mix"])
    assert bundle.spec.session_gap_s == 7200.0
    assert {"session", "session_content", "session_idle"} <= set(bundle.spec.features)
    assert "idle_time" not in bundle.spec.features
    assert [(column.name, column.size) for column in bundle.spec.vectors] == [("look", 3)]
    assert "vector" in dict(bundle.mix)
    looks, row_of = bundle.items.vectors[0], bundle.catalogue.row_of
    assert looks[row_of["i1"]] @ looks[row_of["i4"]] == pytest.approx(1, abs=0.01)  # of one genre
    assert bundle.manifest.metrics["ndcg_at_10"] >= max(trial.value or 0 for trial in report.best.values()) * 0.8
    assert bundle.catalogue.row_of["i7"] not in bundle.popular
    assert not (folder / "tune").exists()
    assert promote(settings, home, report.bundle).state == "live"


def test_what_cannot_be_resumed_is_said(system: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    settings, home, file = system
    with pytest.raises(NotFound, match="no sweep 'nope' to resume"):
        run_sweep(settings, home, file, "nope")
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(SWEEP | {"seed": 9}))
    begun = next((home / "sweeps").glob("tiny-*"))
    with pytest.raises(SettingsError, match="another sweep"):
        run_sweep(settings, home, other, begun.name)
    only = tmp_path / "only.yaml"
    hopeless = {"samples": 1, "defaults": False, "space": {"memory_limit_bytes": [1]}}
    only.write_text(yaml.safe_dump({"name": "only", "families": {"ease": hopeless}}))
    with pytest.raises(MantaError, match="no trial succeeded: ease"):
        run_sweep(settings, home, only)


def test_the_lake_gives_one_training_set_whatever_arrives(system: tuple[Settings, Path, Path]) -> None:
    settings, home, _ = system
    first = load_training_set(settings, home)
    assert len(first.interactions) == N_EVENTS
    weights = first.interactions.weights
    assert weights.min() == 1.0  # nothing came after a user's newest
    assert weights.max() == np.float32(np.log1p(5000))  # a dwell time told from the next event
    assert first.interactions.unsettled is not None
    assert first.catalogue.columns.column_names == ["genres", "look", "title", "year"]
    late = {"event_id": "late", "user_id": "u1", "item_id": "i1", "event_type": "click", "partition": 0}
    late |= {"event_time": 1_760_000_000_000_000, "offset": N_EVENTS}
    lake = open_lake(settings, home)
    append(lake.table(EVENTS), pa.Table.from_pylist([late], EVENT_COLUMNS), Progress(), max_open_partitions=10)
    assert load_training_set(settings, home, first.snapshot).data_hash == first.data_hash
    assert len(load_training_set(settings, home).interactions) == N_EVENTS + 1


def same_board(reports: list[SweepReport]) -> list[dict[str, Any]]:
    """What all of them found: everything but seconds, which differ."""
    timed = {"fit_s", "evaluate_s", "wall_s", "cost", "latency_ms"}
    boards = [
        [{name: value for name, value in one.items() if name not in timed} for one in report.as_json()["leaderboard"]]
        for report in reports
    ]
    assert boards[0] == boards[1]
    return boards[0]


def test_a_grid_and_a_random_search_find_the_same_at_any_parallelism(
    system: tuple[Settings, Path, Path], tmp_path: Path
) -> None:
    settings, home, _ = system
    data = load_training_set(settings, home)

    def swept(name: str, concurrent: int | None, **more: Any) -> SweepReport:
        document = {"name": name, "scheduler": "none", "max_concurrent": concurrent, **more}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
        return run_sweep(settings, home, tmp_path / f"{name}.yaml", data=data, register=False)

    several = {"n_factors": [4, 8], "l2": [1, 9], "iterations": 100}  # long enough for both workers to have some
    grid = {"ials": {"space": several}, "item_knn": {"space": {"window": [0, 10]}}}
    reports = [swept("grid", concurrent, search="grid", families=grid) for concurrent in (1, None)]
    board = same_board(reports)
    assert reports[0].losses["workers"] == 1
    assert not any(report.order_mattered for report in reports)
    assert len(board) == 6
    assert {one["state"] for one in board} == {"done"}

    segment = {"of": "items", "by": "genres", "least_events": 100, "cases": 20}
    families = {"ials": {"samples": 3, "space": {"n_factors": [4, 8], "alpha": {"loguniform": [1, 10]}}}}
    segmented = [swept("parts", n, search="random", families=families, segment=segment) for n in (1, None)]
    board = same_board(segmented)
    bests = [[{key: one[key] for key in ("segment", "best", "value")} for one in r.segments] for r in segmented]
    assert bests[0] == bests[1]
    assert sorted(one["segment"] for one in bests[0]) == ["g0", "g1", "g2"]
    for one in segmented[1].segments:
        kept = list((segmented[1].folder / "models" / f"segment-{one['number']:05d}").iterdir())
        assert [path.name for path in kept] == [one["best"]]
        assert load_model("ials", kept[0]).n_items == N_ITEMS // 3
    assert segmented[0].bundle is None


def test_two_processes_fit_the_model_that_one_fits(system: tuple[Settings, Path, Path]) -> None:
    settings, home, _ = system
    data = load_training_set(settings, home)
    held, events = [ray.put((data.interactions, data.catalogue))], len(data.interactions)
    params = {"iterations": 1, "dropout": 0.0, "n_negatives": 0, "warm_start": False}
    task = ray.remote(num_cpus=0)(fit_together_task)
    found = ray.get(task.remote(held, events, "sasrec", params, 5, 0, workers=2, cpus=0.5, gpus=0.0))
    alone = refit("sasrec", params, data.interactions, data.catalogue, seed=5)
    histories = Histories.of_lists([[0, 3, 6], [1]])
    np.testing.assert_allclose(found.score(histories), alone.score(histories), atol=2e-3)


def test_at_its_deadline_a_sweep_hands_over_the_best_so_far(
    system: tuple[Settings, Path, Path], tmp_path: Path
) -> None:
    """Of a deadline that has passed: what had ended counts, also where no configuration has all its segments."""
    settings, home, _ = system
    data, passed = load_training_set(settings, home), time.time() - 1
    segment = {"of": "items", "by": "genres", "least_events": 100, "cases": 20}
    plan = {"name": "late", "search": "random", "max_concurrent": 1}
    file = tmp_path / "late.yaml"

    def swept(name: str, until: float | None, **more: Any) -> SweepReport:
        families = {"item_knn": {"samples": 1}, "popularity": {"samples": 1}}
        file.write_text(yaml.safe_dump(plan | {"families": families, **more}))
        return run_sweep(settings, home, file, data=data, register=False, under=name, until=until)

    with pytest.raises(NothingFound, match="no trial succeeded: the budget ended"):
        swept("late-whole", passed)
    whole = swept("late-whole", None)
    assert (whole.id, len(whole.best)) == ("late-whole", 2)
    journal = home / "sweeps" / "late-whole" / "trials.jsonl"
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if '"popularity' in line))
    assert [*swept("late-whole", passed).best] == ["popularity"]

    swept("late-parts", None, segment=segment)
    folder = home / "sweeps" / "late-parts"
    (folder / "trials.jsonl").unlink()
    lines = [json.loads(line) for line in (folder / "segments.jsonl").read_text().splitlines()]
    kept = next(line for line in lines if line["trial"].startswith("item_knn"))
    kept["results"] = [result for result in kept["results"] if result["segment"] != "g2"]
    (folder / "segments.jsonl").write_text(json.dumps(kept) + "\n")
    report = swept("late-parts", passed, segment=segment)
    assert report.best == {}
    best_of = {one["segment"]: one["best"] for one in report.segments}
    assert best_of == {"g0": kept["trial"], "g1": kept["trial"], "g2": None}
    assert (folder / "report.html").stat().st_size > 100
