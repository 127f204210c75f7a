"""`manta bundles promote`: to the end of the promotion, and through the endpoint only where it is this system's."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.bundles.registry import open_registry
from app.errors import MantaError
from app.settings import Settings
from deployments.processes import MARKER, Process
from deployments.run import Run, write
from scripts import bundles, cli
from tests.cluster.manta import free_port
from tests.unit.test_run import run_of
from tests.unit.tiny_bundle import register_tiny

SETTINGS = Settings.model_validate({"surfaces": {"home": {}}})


class Endpoint:
    """Answers in turn what it was given: (status, document), None: as Ray's proxy does without a gateway."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any] | None]] = []
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("content-length") or 0))
                status, document = outer.answers.pop(0)
                body = b"Path not found" if document is None else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr("scripts.endpoint.POLL_S", 0.01)
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def promotion(state: str, **more: Any) -> dict[str, Any]:
    return {"promotion": "p1", "bundle": "b1", "surfaces": ["home"], "state": state, "reason": None, **more}


def up(home: Path, endpoint: str, **more: Any) -> Run:
    return write(run_of(home, endpoint=endpoint, state="up", users=(Process.of(),), **more))


def promote(home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    file = home / "manta.yaml"
    file.write_text("surfaces: {home: {}}\n")
    monkeypatch.setenv("MANTA_HOME", str(home))
    monkeypatch.setenv("MANTA_SETTINGS", str(file))
    return cli._run(["bundles", "promote", "b1"])


@pytest.mark.parametrize("end", ["refused", "failed", "rolled_back"])
def test_it_follows_a_promotion_to_its_end_and_says_why(
    tmp_path: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: str,
) -> None:
    """Over a coordinator and a gateway that come back meanwhile."""
    up(tmp_path, endpoint.url)
    endpoint.answers = [
        (202, promotion("loading")),
        (503, {"title": "Not available now", "detail": "the swap coordinator does not answer"}),
        (404, None),
        (200, promotion("loading", figures={"sound": True}, replicas={"loaded": 1, "total": 4})),
        (200, promotion(end, reason="smoke request: scores are no numbers")),
    ]
    assert promote(tmp_path, monkeypatch) == 1
    said = capsys.readouterr().err
    assert f"promotion p1: {end}: smoke request: scores are no numbers" in said
    assert "checking its files" in said
    assert "loading: 1 of 4 replicas" in said
    assert endpoint.asked == ["POST /v1/bundles/b1/promote", *["GET /v1/promotions/p1"] * 4]


def test_what_is_refused_at_once_or_live_already(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    up(tmp_path, endpoint.url)
    endpoint.answers = [(409, {"title": "Conflict", "detail": "worse than what is live"})]
    assert promote(tmp_path, monkeypatch) == 1
    assert "worse than what is live" in capsys.readouterr().err
    endpoint.answers = [(202, promotion("live"))]
    assert promote(tmp_path, monkeypatch) == 0


def test_an_endpoint_that_stays_away_is_given_up(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.endpoint.AWAY_S", 0.05)
    endpoint.answers = [(202, promotion("loading")), *[(503, {"detail": "the coordinator does not answer"})] * 1000]
    with pytest.raises(MantaError, match="the coordinator does not answer"):
        bundles.promote_live(up(tmp_path, endpoint.url), "b1", None, force=False, expected=None)


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def serve(port: int, session: Path) -> "subprocess.Popen[bytes]":
    """A process of that session that answers on the port."""
    child = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env={**os.environ, MARKER: str(session)})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    return child


def test_a_system_that_is_starting_is_asked_only_where_its_own_endpoint_answers(tmp_path: Path) -> None:
    port = free_port()
    run = up(tmp_path, f"http://127.0.0.1:{port}")
    assert bundles.serving(tmp_path) == run  # up: its endpoint is the way, whether or not it answers now
    run = write(run.model_copy(update={"state": "starting"}))
    assert bundles.serving(tmp_path) is None
    for session, found in ((tmp_path / "other", None), (run.session, run)):
        child = serve(port, session)
        try:
            assert bundles.serving(tmp_path) == found
        finally:
            child.kill()
            child.wait()
    (tmp_path / "run.json").unlink()
    assert bundles.serving(tmp_path) is None


def test_offline_the_alias_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_tiny(SETTINGS, tmp_path, "b1")
    run = write(run_of(tmp_path, endpoint=f"http://127.0.0.1:{free_port()}", users=(Process.of(),)))
    assert run.state == "starting"
    assert promote(tmp_path, monkeypatch) == 0
    assert bundles._registry().aliases().live == {"home": "b1"}


def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints."""
    (home / "manta.yaml").write_text("surfaces: {home: {}}\n")
    monkeypatch.setenv("MANTA_HOME", str(home))
    monkeypatch.setenv("MANTA_SETTINGS", str(home / "manta.yaml"))
    assert cli._run(["bundles", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_lineage_and_the_record_of_why_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = {
        "id": "b1",
        "created": "2026-11-21T00:00:00Z",
        "snapshot": "events:7,items:8",
        "data_hash": "d4ta",
        "code_version": "1.0+abc",
        "sweep": "tiny-1",
        "seed": 3,
        "families": [{"name": "ials", "family": "ials", "params": {"n_factors": 8}}],
        "metrics": {"ndcg_at_10": 0.25, "ials.ndcg_at_10": 0.125},
        "segments": {"history=1-4": {"cases": 40.0, "ndcg_at_10": 0.0625}},
        "comparisons": {
            "b0": {
                "metric": "ndcg_at_10",
                "basis": "fresh",
                "cases": 9,
                "theirs": 0.2,
                "ours": 0.25,
                "low": 0.01,
                "high": 0.09,
            }
        },
    }
    registry = open_registry(SETTINGS, tmp_path)
    registry.register("b1", tmp_path / "b1", manifest)
    registry.register("b0", tmp_path / "b0", {"id": "b0", "metrics": {}})
    registry.move("b1", {"home": None})
    back = registry.start_promotion("b1", ["home"])
    registry.update_promotion(back.id, state="live")
    registry.update_promotion(back.id, state="rolled_back", reason="errors: 60 of 80 answers failed")
    registry.start_promotion("b0", ["other"], state="refused", reason="size: found 2, wanted 1")

    shown = run(tmp_path, monkeypatch, capsys, "show", "b1")
    for text in (
        "events:7,items:8",
        "d4ta",
        "1.0+abc",
        "tiny-1",
        "history=1-4",
        "0.0625",
        "0.125",
        "+0.0100 to +0.0900",
    ):
        assert text in shown
    listed = run(tmp_path, monkeypatch, capsys, "list")
    assert "0.25" in listed
    assert "0.125" not in listed
    told = run(tmp_path, monkeypatch, capsys, "history")
    assert "errors: 60 of 80 answers failed" in told
    assert "size: found 2, wanted 1" in told
    of_home = json.loads(run(tmp_path, monkeypatch, capsys, "history", "--surface", "home", "--json"))["promotions"]
    assert [one["state"] for one in of_home] == ["rolled_back"]


def test_a_bundle_comes_in_from_another_home_and_the_oldest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MANTA_REGISTRY__KEEP", "2")
    here, there = tmp_path / "here", tmp_path / "there"
    register_tiny(SETTINGS, there, "b9")
    run(there, monkeypatch, capsys, "export", "b9", str(tmp_path / "store"))
    registry = open_registry(SETTINGS, here)
    for order, name in enumerate(("live", "before", "old", "recent")):
        (here / "bundles" / name).mkdir(parents=True)
        registry.register(name, here / "bundles" / name, {"id": name}, created=100.0 + order)
    registry.move("before", {"home": None})
    registry.move("live", {"home": "before"})
    for left, age_s in ((".writing-x", 2 * 86_400), (".coming-y", 10), (".gone-z", 10)):
        (here / "bundles" / left).mkdir()
        os.utime(here / "bundles" / left, (time.time() - age_s, time.time() - age_s))
    run(here, monkeypatch, capsys, "import", str(tmp_path / "store" / "b9"))
    assert {row.id for row in registry.bundles()} == {"b9", "recent", "live", "before"}
    assert {path.name for path in (here / "bundles").iterdir()} == {"b9", "recent", "live", "before", ".coming-y"}
    assert "b9: " in run(here, monkeypatch, capsys, "verify", "b9")
