"""The demo's story, step by step: every step is what a user would do, on real events."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.errors import MantaError
from app.settings import Settings
from deployments.cluster import Run, mark_up
from deployments.processes import marked
from scripts.cli import take_in
from scripts.live_quality import live_quality
from scripts.memory import PeakMemory
from scripts.movielens import Ratings, keyed, load_ratings
from scripts.replay import Client, Replayed, replay
from scripts.system import launch, live_bundles

SWEEP = Path(__file__).resolve().parent.parent / "tune" / "sweeps" / "demo.yaml"
FRESHNESS_USERS = 50
READY_S = 120.0
PACKAGES = ("ray", "torch", "faiss-gpu", "pyiceberg", "rocksdict", "confluent-kafka", "pyarrow", "numpy", "fastapi")


class Story:
    """Tells the demo once. What it has done stands in `$MANTA_HOME/demo.json`, so that a second start goes on there.

    Args:
        settings: with the broker's address.
        run: the system that this process has started.
        console: where the steps are told.
        began: seconds since 1970 from which the time to the first recommendation counts.
    """

    def __init__(self, settings: Settings, run: Run, console: Console, *, began: float) -> None:
        self.settings, self.run, self.home = settings, run, run.home
        self.step, self.told = "start", False
        self._console, self._began = console, began
        self._done = _Done(run.home / "demo.json")
        self._host, self._port = "127.0.0.1", settings.http.port
        self._surface = settings.default_surface

    def tell(self) -> None:
        """All of it; raises MantaError in the step that `step` names."""
        with PeakMemory(lambda: [os.getpid(), *(process.pid for process in marked(self.run.session))]) as memory:
            ratings = self._ratings()
            past, live = ratings.split()
            if not self._done.get("played"):
                self._play(ratings, past)
            if not self._done.get("bundle"):
                self._ingest("ingest the past into the lake")
                self._sweep()
            self._serve()
            report: dict[str, Any] = {"seconds_to_first_recommendation": self._first_recommendation()}
            report |= self._live(past, live)
            report |= self._freshness()
            report["events_in_lake"] = self._ingest("ingest the live part")
            memory.sample()
        report |= {
            "events_produced": self._done.get("produced"),
            "trials": self._done.get("trials"),
            "peak_memory_bytes": memory.peak,
            "versions": {"manta": importlib.metadata.version("manta")}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        self._write(report)
        mark_up(self.run, stays=False)
        self.told = True

    def _ratings(self) -> Ratings:
        with self._step("read the ratings"):
            return load_ratings()

    def _play(self, ratings: Ratings, past: list[dict[str, Any]]) -> None:
        from app.events.producer import EventProducer
        from app.events.schema import EVENTS, ITEMS
        from app.events.topics import ensure_topics

        with self._step("play the past into Kafka", len(past) + len(ratings.items)) as advance:
            ensure_topics(self.settings.kafka)
            producer = EventProducer(self.settings.kafka, delivery_timeout_s=30.0, linger_ms=20)
            try:
                sent = producer.send_blocking(ITEMS, keyed(ratings.items, "item_id"), advance)
                producer.send_blocking(EVENTS, keyed(past, "user_id"), lambda n: advance(sent + n))
            finally:
                producer.close()
            self._done.put(played=True, produced=len(past))

    def _ingest(self, name: str) -> int:
        """Rows of the lake's events afterwards."""
        from app.lake.snapshot import snapshot
        from app.lake.tables import open_lake

        with self._step(name, 1) as advance:
            report = take_in(self.settings, self.home, lambda _topic, n, total: advance(n, total))
            if report.dead_letters:
                raise MantaError(f"found dead letters {dict(report.dead_letters)}, wanted none")
        return snapshot(open_lake(self.settings, self.home), "events").rows

    def _sweep(self) -> None:
        """`manta sweep` as a user types it: a process of its own, whose memory is free again once endpoint runs."""
        self.step = "sweep"
        self._console.print("[bold]sweep[/bold]: many models, one winner")
        what = ["--resume", begun] if (begun := self._interrupted_sweep()) else [str(SWEEP)]
        command = [sys.executable, "-P", "-m", "scripts.cli", "sweep", *what, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=SWEEP.parents[2])
        if done.returncode != 0:
            raise MantaError(f"`manta sweep` ended with {done.returncode}; what it said stands above")
        report = json.loads(done.stdout)
        self._console.print(f"  leaderboard: {report['folder']}/leaderboard.png", soft_wrap=True)
        self._done.put(bundle=report["bundle"], trials=len(report["leaderboard"]), family=next(iter(report["best"])))

    def _interrupted_sweep(self) -> str | None:
        """The demo's newest sweep, if an earlier start was ended in the middle of it."""
        folders = sorted((self.home / "sweeps").glob(f"{SWEEP.stem}-*"))
        begun = folders[-1] if folders else None
        if begun is None or not (begun / "sweep.json").exists() or (begun / "leaderboard.json").exists():
            return None
        return begun.name

    def _serve(self) -> None:
        with self._step("start the endpoint"):
            launch(self.settings, self.run, hint=False)
        if not set(self.settings.surfaces) <= set(live_bundles(self.settings, self.home)):
            with self._step("promote the bundle"):
                self._promote(str(self._done.get("bundle")))
        with self._step("wait until every surface is ready"):
            self._until_ready()

    def _promote(self, bundle: str) -> None:
        client = Client(self._host, self._port)
        status, answer = client.call("POST", f"/v1/bundles/{bundle}/promote", {})
        if status != 202:
            raise MantaError(f"promotion of {bundle} was refused with {status}: {answer.get('detail', answer)}")
        promotion = answer["promotion"]
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            _, state = client.call("GET", f"/v1/promotions/{promotion}")
            if state["state"] == "live":
                return
            if state["state"] != "loading":
                raise MantaError(f"promotion of {bundle}: {state['state']}: {state['reason']}")
            time.sleep(0.1)
        raise MantaError(f"promotion of {bundle} was not live within {READY_S:.0f} s")

    def _until_ready(self) -> None:
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                status, said = Client(self._host, self._port, timeout_s=5).call("GET", "/readyz")
            except OSError as error:
                status, said = 0, str(error)
            if status == 200:
                return
            time.sleep(0.1)
        raise MantaError(f"{self.run.endpoint}/readyz: found {said}, wanted ready within {READY_S:.0f} s")

    def _first_recommendation(self) -> float:
        with self._step("first recommendation"):
            user = {"surface": self._surface, "user_id": "15", "k": 5}
            status, answer = Client(self._host, self._port).call("POST", "/v1/recommend", user)
            if status != 200 or not answer["items"]:
                raise MantaError(f"found status {status} and {answer}, wanted 200 with items")
        seconds = time.time() - self._began
        self._console.print(f"  {seconds:.1f} s after the command was typed")
        return seconds

    def _live(self, past: list[dict[str, Any]], live: list[dict[str, Any]]) -> dict[str, Any]:
        """The newest tenth as live traffic. Judged the first time alone: later, its events stand in the histories."""
        first = not self._done.get("replay_began")
        some = live if not self._done.get("replayed") else live[:1000]
        self._done.put(replay_began=True)
        with self._step("live traffic: ask, then tell", len(some)) as advance:
            seen = replay(self._host, self._port, some, surface=self._surface, on_step=advance)
        if seen.accepted < len(some):
            raise MantaError(f"found {seen.accepted} of {len(some)} events acknowledged, wanted all")
        if first:
            with self._step("judge the live answers"):
                self._done.put(metrics=self._quality(past, live, seen))
        if not self._done.get("replayed"):
            self._done.put(replayed=True, produced=int(self._done.get("produced") or 0) + len(live))
        return {
            "champion": {
                "family": self._done.get("family"),
                "bundle": self._done.get("bundle"),
                "metrics": self._done.get("metrics"),
            },
            "requests": seen.requests,
            "errors": seen.errors,
            "degraded": seen.degraded,
            "not_applied_in_time": seen.not_applied,
            "p50_ms": seen.percentile_ms(50),
            "p99_ms": seen.percentile_ms(99),
        }

    def _quality(self, past: list[dict[str, Any]], live: list[dict[str, Any]], seen: Replayed) -> dict[str, Any]:
        """In a process of its own too: the models are large."""
        folder = self.home / "bundles" / str(self._done.get("bundle"))
        limit = self.settings.surfaces[self._surface].history_limit
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(live_quality, folder, past, live, seen, history_limit=limit).result()

    def _freshness(self) -> dict[str, Any]:
        from scripts.freshness import event_to_recommendation_ms

        users = [f"visitor-{int(self._began)}-{n}" for n in range(FRESHNESS_USERS)]
        with self._step("from a click to the changed answer"):
            found, accepted = event_to_recommendation_ms(self._host, self._port, users, surface=self._surface)
        self._done.put(produced=int(self._done.get("produced") or 0) + accepted)
        if not found:
            raise MantaError("found no answer that changed after a click, wanted one within a second")
        p50, p99 = np.percentile(found, [50, 99])
        return {"event_to_recommendation_ms": {"p50": float(p50), "p99": float(p99)}}

    def _write(self, report: dict[str, Any]) -> None:
        file = self.home / "demo-report.json"
        file.write_text(json.dumps(report, indent=2) + "\n")
        metrics = report["champion"]["metrics"]
        fresh = report["event_to_recommendation_ms"]
        say = self._console.print
        say(f"\n[bold]Manta is up[/bold] at {self.run.endpoint}", highlight=False)
        say(
            f"  {report['requests']} live requests, {report['errors']} errors, p50 {report['p50_ms']:.1f} ms, "
            f"p99 {report['p99_ms']:.1f} ms; a click shows after {fresh['p50']:.0f} ms (p99 {fresh['p99']:.0f} ms)"
        )
        if metrics is None:
            say("  ndcg_at_10 is not judged: an earlier start was ended in the live part; a new --home tells it all")
        else:
            say(
                f"  ndcg_at_10 on the newest tenth {metrics['ndcg_at_10']:.4f}: {metrics['times_popularity']:.1f} × "
                f"popularity; {metrics['best_single_family']} alone {metrics['best_single_ndcg_at_10']:.4f}"
            )
        say(f"  report: {file}\n", soft_wrap=True)
        for line in self._invitation():
            print(line, file=self._console.file)

    def _invitation(self) -> list[str]:
        """What to try next; plain lines, to be copied."""
        post = f"curl -s {self.run.endpoint}/v1"
        return [
            "Try:",
            f"  curl -s '{self.run.endpoint}/v1/recommend/15?surface=home&k=5'",
            f"  curl -s '{self.run.endpoint}/v1/events?wait=applied' --json "
            '\'{"user_id": "you", "item_id": "318", "event_type": "click"}\'',
            f'  {post}/recommend --json \'{{"surface": "related", "items": ["318"], "user_id": "you", "k": 5}}\'',
            f"Ray dashboard: {self.run.dashboard} (its token: cat {self.run.home / 'ray' / 'token'})",
            f'  eval "$(MANTA_HOME={self.run.home} scripts/manta env)"; ray job submit -- manta status',
        ]

    @contextmanager
    def _step(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """A step with its bar; yields a function that takes (done[, of])."""
        self.step = name
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(name, total=total)

            def advance(done: int, of: int | None = None) -> None:
                progress.update(task, completed=done, total=of if of is not None else total)

            yield advance
            shown = progress.tasks[0].total or 1
            progress.update(task, completed=shown, total=shown)


class _Done:
    """What has been done in this home, kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._values: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def put(self, **values: Any) -> None:
        self._values |= values
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._values, indent=2) + "\n")
        fresh.replace(self._file)
