"""A sweep's overhead: 200 trials against their own seconds, 1,000 segment models against a loop on as many cores."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml

from app.models.interactions import Catalogue, Interactions
from app.settings import Settings
from deployments.cluster import attach

if TYPE_CHECKING:
    from tune.dataset import TrainingSet

LEAST_TRIAL_S = 2.0
ROOT = Path(__file__).resolve().parents[2]


def run(trials: int = 200, segments: int = 1000, cores: int | None = None) -> dict[str, Any]:
    """Wall seconds over what arithmetic alone would take; both are to be at most 1.1. Ray runs already.

    Trials: iALS, one core each, against the sum of their fit and evaluation seconds divided by the cores. Segments:
    iALS on 500 to 1,500 interactions, with evaluation and saving, against one process that loops over the same with as
    many threads as cores (`ratio`), and against forked processes of one thread each (`ratio_to_processes`); both are
    timed from where they have imported everything and hold the data.
    """
    cores = cores or os.cpu_count() or 1
    home = Path(tempfile.mkdtemp(prefix="ms-", dir="/tmp"))
    settings = Settings.model_validate({"ray": {"num_cpus": cores}})
    try:
        with attach(settings, home, needs_broker=False, ends=True, say=lambda _: None) as attached:
            from tune.sweep import run_sweep

            def swept(name: str, data: "TrainingSet", **more: Any) -> tuple[float, Any]:
                file = home / f"{name}.yaml"
                document = {"name": name, "search": "random", "scheduler": "none", "latency_probes": 0, **more}
                file.write_text(yaml.safe_dump(document))
                began = time.perf_counter()
                report = run_sweep(attached.settings, home, file, data=data, register=False)
                return time.perf_counter() - began, report

            whole = _whole()
            space = {"n_factors": 32, "iterations": _iterations(whole), "l2": {"loguniform": [1, 100]}}
            plan = {"samples": trials, "defaults": False, "space": space}
            wall, report = swept("trials", whole, families={"ials": plan})
            spent = [trial.fit_s + trial.evaluate_s for trial in report.trials]
            found: dict[str, Any] = {
                "cores": cores,
                "trials": {
                    "trials": len(spent),
                    "least_trial_s": min(spent),
                    "wall_s": wall,
                    "ratio": wall / (sum(spent) / cores),
                    "losses": report.losses,
                },
            }
            data = _segmented(segments)
            loop, processes = _loop(home, data, cores)
            # Every segment has 500 interactions or more in all; validation takes the newest tenth of them.
            plan = {"of": "events", "by": "surface", "least_events": 400}
            wall, report = swept("segments", data, families={"ials": {"samples": 1}}, segment=plan)
            found["segments"] = {
                "models": sum(1 for one in report.segments if one["best"]),
                "wall_s": wall,
                "one_process_s": loop,
                "processes_s": processes,
                "ratio": wall / loop,
                "ratio_to_processes": wall / processes,
                "losses": report.losses,
            }
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return found


def _set(users: Any, items: Any, n_users: int, n_items: int, marks: Any = None) -> "TrainingSet":
    from tune.dataset import TrainingSet  # it imports Ray, which must find its environment

    n = len(items)
    events = Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        np.ones(n, np.float32),
        np.arange(n, dtype=np.int64) * 1000,
        n_users,
        n_items,
    )
    catalogue = Catalogue.of([f"i{row}" for row in range(n_items)])
    named = [f"u{row}" for row in range(n_users)]
    available, sessions = np.ones(n_items, np.bool_), np.zeros(n_users, np.bool_)
    return TrainingSet(events, catalogue, available, named, sessions, "bench", "bench", marks)


def _whole(n: int = 100_000, n_users: int = 3000, n_items: int = 3000) -> "TrainingSet":
    random = np.random.default_rng(0)
    users = random.integers(0, n_users, n)
    return _set(users, (random.zipf(1.3, n) * 8 + users % 8) % n_items, n_users, n_items)


def _segmented(segments: int) -> "TrainingSet":
    """Segments of 500 to 1,500 events, 40 users and 150 items each, all of them mixed in time."""
    random = np.random.default_rng(1)
    own = random.permutation(np.repeat(np.arange(segments), random.integers(500, 1500, segments)))
    users = own * 40 + random.integers(0, 40, len(own))
    items = own * 150 + np.minimum(random.zipf(1.3, len(own)), 150) - 1
    marks = pa.array([f"s{one}" for one in range(segments)]).take(pa.array(own))
    return _set(users, items, segments * 40, segments * 150, marks)


def _iterations(data: "TrainingSet") -> int:
    """So many that a fit takes a quarter more than LEAST_TRIAL_S on one core of this machine."""
    from app.models.families import make

    os.environ["OMP_NUM_THREADS"] = "1"
    params = {"n_factors": 32, "iterations": 5}
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        make("ials", params).fit(data.interactions, data.catalogue)
        taken.append(time.perf_counter() - began)
    return min(200, max(5, int(5 * 1.25 * LEAST_TRIAL_S / min(taken))))


def _loop(home: Path, data: "TrainingSet", cores: int) -> tuple[float, float]:
    """Seconds of the loop in one process with a thread a core, and in a process of one thread a core."""
    events = home / "segments.npz"
    whole = data.interactions
    assert data.marks is not None
    own = np.asarray(data.marks.dictionary_encode().indices)
    np.savez(events, users=whole.users, items=whole.items, own=own, sizes=[whole.n_users, whole.n_items])
    found = []
    for processes, threads in ((1, cores), (cores, 1)):
        command = [sys.executable, "-m", "tests.bench.segment_loop", str(events), str(home / "loop"), str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(float(json.loads(done.stdout.splitlines()[-1])["seconds"]))
    return found[0], found[1]
