"""A whole system from the command line: who may connect, what listens, two side by side, and what `down` leaves."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from deployments.processes import marked
from deployments.run import Run, read
from tests.cluster.manta import START_S, bare, free_port, listens, manta, open_to_others

pytestmark = pytest.mark.cluster
ROLES = {"proxy", "gateway", "state_writer", "controller", "broker"}
SETTINGS = """
surfaces: {home: {}}
serve: {gateway: {min_replicas: 1, max_replicas: 1, num_cpus: 0.1}}
ray: {num_cpus: 2, object_store_bytes: 80000000}
"""


@pytest.fixture(scope="module")
def up(short_home: Path) -> Iterator[Run]:
    """A system that `manta up` started; `manta down` ends it, and then nothing of it is left."""
    (short_home / "manta.yaml").write_text(SETTINGS)
    port = free_port()
    started = manta(short_home, "up", "--port", str(port), "--settings", str(short_home / "manta.yaml"))
    run = read(short_home)
    try:
        assert started.returncode == 0, started.stderr
        assert run is not None
        yield run
    finally:
        ended = manta(short_home, "down")
    assert ended.returncode == 0, ended.stderr
    assert not marked(run.session)
    assert not run.session.exists()
    assert not (short_home / "run.json").exists()
    assert not [at for at in (port, run.ports.gcs, run.ports.dashboard, run.ports.kafka) if listens(at)]


def status(home: Path) -> dict[str, Any]:
    answered = manta(home, "status", "--json")
    assert answered.returncode == 0, answered.stderr
    document: dict[str, Any] = json.loads(answered.stdout)
    return document


@pytest.mark.timeout(START_S + 60)
def test_status_names_what_runs(up: Run) -> None:
    document = status(up.home)
    assert document["state"] == "up"
    assert document["endpoint"] == up.endpoint
    assert document["surfaces"] == [{"surface": "home", "bundle": None}]
    assert {row["role"] for row in document["processes"]} == ROLES
    for row in document["processes"]:
        assert row["pid"] > 0
        assert row["rss_bytes"] > 0
        assert set(row) == {"role", "name", "pid", "node", "started", "restarts", "cpu_percent", "rss_bytes"}
    again = manta(up.home, "up")
    assert again.returncode == 0, "up twice is no error"


def test_a_client_without_the_token_is_refused(up: Run) -> None:
    for path in ("/api/jobs/", "/api/v0/actors", "/api/cluster_status"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(up.dashboard + path, timeout=10)
        assert refused.value.code == 401, path
    outside = bare(up.home, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    joining = f"import ray; ray.init({up.address!r}); print('joined')"
    driver = subprocess.run([sys.executable, "-c", joining], env=outside, capture_output=True, text=True, timeout=120)
    assert driver.returncode != 0
    assert "joined" not in driver.stdout
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", up.dashboard, "--", "true"]
    job = subprocess.run(submit, env=outside, capture_output=True, text=True, timeout=120)
    assert job.returncode != 0
    assert "401" in job.stderr + job.stdout or "nauth" in job.stderr + job.stdout


@pytest.mark.timeout(START_S)
def test_env_is_all_that_ray_job_submit_needs(up: Run) -> None:
    line = f'eval "$({sys.executable} -P -m scripts.cli env)" && ray job submit -- manta status --json'
    shell = ["bash", "-c", line]
    done = subprocess.run(shell, env=bare(up.home), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'"endpoint": "{up.endpoint}"' in done.stdout
    assert (up.home / "ray" / "token").stat().st_mode & 0o777 == 0o600


def played(folder: Path) -> tuple[Path, Path]:
    """Files of 30 items and of 60 users' 1,800 ratings in the order of time."""
    random = Random(0)
    genres = ("Drama", "Comedy")
    items = [{"item_id": f"i{n}", "title": f"Item {n}", "genres": [genres[n % 2]], "year": 1990 + n} for n in range(30)]
    events = []
    for n in range(1800):
        user = random.randrange(60)
        liked = [item["item_id"] for item in items if item["genres"] == [genres[user % 2]]]
        at = f"2026-01-{1 + n // 75:02}T{n % 75 // 4:02}:{n % 4 * 15:02}:00Z"
        events.append({"user_id": f"u{user}", "item_id": random.choice(liked), "event_time": at, "value": 4.0})
    files = folder / "items.jsonl", folder / "events.jsonl"
    for file, rows in zip(files, (items, events), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


PIPELINE = """
name: nightly
schedule: {at: "03:00"}
deadline: 1h
steps:
  update:
  sweep: {file: small.yaml}
  promote: {surfaces: [home]}
  publish:
"""


def killed_in_the_sweep(home: Path, file: Path) -> None:
    """`manta pipeline` until its sweep is a job on Ray; then a second one is refused, and the first is killed -9."""
    words = [sys.executable, "-P", "-m", "scripts.cli", "pipeline", str(file), "--once"]
    with (home / "pipeline.log").open("wb") as log:
        first = subprocess.Popen(words, env=bare(home), cwd=home, stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while b"sweep: job nightly-" not in (home / "pipeline.log").read_bytes():
            assert first.poll() is None, (home / "pipeline.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        second = manta(home, "pipeline", str(file), "--once")
        assert second.returncode == 1
        assert f"pipeline nightly: found it held by process {first.pid} on " in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.timeout(2 * START_S)
def test_a_pipeline_on_the_systems_own_ray_learns_what_is_then_served(up: Run, tmp_path: Path) -> None:
    for kind, file in zip(("items", "events"), played(tmp_path), strict=True):
        sent = manta(up.home, "import", str(file), "--kind", kind, "--json")
        assert sent.returncode == 0, sent.stderr
    (tmp_path / "small.yaml").write_text(
        "name: small\nsearch: random\nfamilies: {popularity: {samples: 1}, item_knn: {samples: 1}}\n"
    )
    nightly = tmp_path / "nightly.yaml"
    nightly.write_text(PIPELINE)
    killed_in_the_sweep(up.home, nightly)
    done = manta(up.home, "pipeline", str(nightly), "--once", "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert (run["state"], run["late_s"]) == ("live", None), run
    steps = {step["step"]: step for step in run["steps"]}
    assert [(name, step["state"], len(step["attempts"])) for name, step in steps.items()] == [
        (name, "done", 1) for name in ("update", "sweep", "promote", "publish")
    ]
    assert all(step["seconds"] > 0 for step in steps.values())
    assert steps["update"]["result"]["rows"]["events"] == 1800
    asked = urllib.request.Request(up.dashboard + "/api/jobs/")
    asked.add_header("Authorization", f"Bearer {(up.home / 'ray' / 'token').read_text()}")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        jobs = [job["submission_id"] for job in json.load(answer) if (job["metadata"] or {}).get("run") == run["run"]]
    assert sorted(jobs) == sorted(f"{run['run']}-{name}" for name in steps), "each ran once, under its name"
    (only,) = json.loads(manta(up.home, "pipeline", str(nightly), "--history", "--json").stdout)["runs"]
    assert only == run
    asked = urllib.request.Request(up.endpoint + "/v1/recommend", b'{"user_id": "u1", "k": 5}')
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        said = json.load(answer)
    assert said["bundle"] == run["bundle"]
    assert len(said["items"]) == 5
    followed = manta(tmp_path / "other", "bundles", "follow", "--once", "--from", up.kafka, "--json")
    assert followed.returncode == 0, followed.stderr
    assert [(one["bundle"], one["outcome"]) for one in json.loads(followed.stdout)["followed"]] == [
        (run["bundle"], "imported")
    ]


def test_only_haproxys_two_ports_are_open_to_others(up: Run) -> None:
    found = open_to_others(up.session)
    assert found == {("haproxy", up.ports.haproxy_stats), ("haproxy", up.ports.haproxy_metrics)}


@pytest.mark.timeout(2 * START_S)
def test_a_second_home_beside_it_without_haproxy(up: Run, tmp_path: Path) -> None:
    port = free_port()
    words = ("up", "--port", str(port), "--settings", str(up.home / "manta.yaml"))
    try:
        started = manta(tmp_path, *words, MANTA_SERVE__HAPROXY="false")
        assert started.returncode == 0, started.stderr
        other = read(tmp_path)
        assert other is not None
        assert not set(other.ports.model_dump().values()) & set(up.ports.model_dump().values())
        assert open_to_others(other.session) == set()
        assert {row["name"] for row in status(tmp_path)["processes"] if row["role"] == "proxy"} != {"haproxy"}
    finally:
        ended = manta(tmp_path, "down")
    assert ended.returncode == 0, ended.stderr
    assert not marked(other.session)
    with urllib.request.urlopen(up.endpoint + "/healthz", timeout=10) as answer:
        assert answer.status == 200, "the first goes on"


def test_a_port_in_use_is_one_clear_line(up: Run, tmp_path: Path) -> None:
    port = up.endpoint.rsplit(":", 1)[1]
    refused = manta(tmp_path, "up", "--port", port)
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    assert port in refused.stderr
    assert "choose another port" in refused.stderr
