"""A sweep on Ray: killed -9 in the middle, resumed without running a finished trial again, ending in a bundle."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from app.bundles.load import load_bundle
from app.bundles.registry import open_registry
from app.errors import MantaError, NotFound, SettingsError
from app.events.columns import EVENT_COLUMNS
from app.events.entities import ENTITY_COLUMNS
from app.events.schema import EVENTS, ITEMS
from app.lake.commit import Progress, append, replace
from app.lake.tables import open_lake
from app.settings import Settings
from deployments.cluster import attach
from tune.dataset import load_training_set
from tune.journal import Journal
from tune.promote import promote
from tune.sweep import run_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

SWEEP = {
    "name": "tiny",
    "search": "random",
    "cpus": 0.5,
    "families": {
        "ials": {"samples": 8, "space": {"n_factors": [4, 8], "l2": {"loguniform": [0.1, 10]}}},
        "popularity": {"samples": 5},
        "vector": {"samples": 1},
        "content": {"samples": 1},
        "ease": {"samples": 2, "space": {"memory_limit_bytes": [1]}},
    },
}
N_ITEMS, N_USERS, N_EVENTS = 60, 50, 2400


@pytest.fixture(scope="module")
def system(short_home: Path) -> Iterator[tuple[Settings, Path, Path]]:
    """(settings, home, sweep file) of a home with a lake and a running Ray."""
    learn = {"session_gap_s": 7200.0, "extra_features": ["session", "session_content", "session_idle"]}
    learn["event_weights"] = {"rating": {"log1p": True, "cap_s": 5000}, "click": 1}
    settings = Settings.model_validate(
        {"ray": {"num_cpus": 2}, "surfaces": {"home": {"candidates": 40}}, "learn": learn}
    )
    (short_home / "manta.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    file = short_home / "tiny.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    fill_lake(settings, short_home)
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


def killed_in_the_middle(home: Path, file: Path) -> Path:
    """Runs `manta sweep` and kills it -9 after a few finished trials; the sweep's folder."""
    environment = os.environ | {"MANTA_HOME": str(home), "MANTA_SETTINGS": str(home / "manta.yaml")}
    command = [sys.executable, "-m", "scripts.cli", "sweep", str(file)]
    with (home / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while driver.poll() is None and time.monotonic() < deadline:
            for folder in (home / "sweeps").glob("tiny-*"):
                if (folder / "trials.jsonl").exists() and len(Journal(folder / "trials.jsonl").finished) >= 3:
                    return folder
            time.sleep(0.01)
        raise AssertionError((home / "driver.log").read_text()[-3000:])
    finally:
        driver.kill()
        driver.wait()


def test_a_killed_sweep_resumes_and_ends_in_a_bundle(system: tuple[Settings, Path, Path]) -> None:
    settings, home, file = system
    folder = killed_in_the_middle(home, file)
    before = {trial.name: trial for trial in Journal(folder / "trials.jsonl").finished}
    lines = lines_by_trial(folder)
    assert 3 <= len(before) < 17

    report = run_sweep(settings, home, file, folder.name)

    assert report.id == folder.name
    assert len(report.trials) == 17
    after = {trial.name: trial for trial in report.trials}
    for name, trial in before.items():
        assert after[name] == trial
        assert lines_by_trial(folder)[name] == lines[name], f"{name} ran again"
    assert {trial.name for trial in report.trials if trial.state == "failed"} == {"ease-001"}
    assert "wanted at most memory_limit_bytes" in str(after["ease-001"].error)
    for name in ("leaderboard.json", "leaderboard.txt", "leaderboard.png"):
        assert (folder / name).stat().st_size > 100
    assert json.loads((folder / "leaderboard.json").read_text())["best"].keys() == report.best.keys()

    registry = open_registry(settings, home)
    assert report.bundle is not None
    assert [row.id for row in registry.bundles()] == [report.bundle]
    assert registry.aliases().live == {}
    bundle = load_bundle(registry.bundle(report.bundle).folder)
    assert bundle.manifest.sweep == folder.name
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
