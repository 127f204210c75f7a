"""A user of whom everything is kept that can be, who is erased: no file knows him, and nothing brings him back."""

import secrets
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc

from app.events.producer import EventProducer
from app.events.schema import EVENTS
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.settings import Settings
from app.state.layout import StatePaths, choose_generation, current_generation
from app.state.position import Position
from deployments.run import Run
from tests.search.files import files_with

Json = dict[str, Any]
Ask = Callable[..., tuple[int, Json]]  # method, path, body
Told = Callable[..., Json]  # words of a command


def erase_one(run: Run, settings: Settings, ask: Ask, told: Told, items: list[str]) -> None:
    """Tells the whole of it in a running system that has a live bundle with these items."""
    user, session = secrets.token_hex(16), secrets.token_hex(16)
    _leave_traces(settings, ask, told, user, session, items)
    assert {path.split("/")[0] for path in _in(run.home, user, session)} >= {"lake", "state", "checkpoints"}, (
        "the search finds what is there"
    )

    done = told("users", "erase", user)
    assert done["state"] == "done", done
    assert not {user, session} & set(str(done).replace("'", " ").split())
    places = {report["place"]: report for report in done["places"]}
    assert {name.split(":")[0] for name in places} >= {
        "state",
        "lake",
        "bundles",
        "checkpoints",
        "dead letters",
        "kafka",
    }
    assert all("cleared" in report for name, report in places.items() if not name.startswith(("kafka", "dead letters")))
    assert places[f"kafka: {EVENTS}"]["retention_until"] > time.strftime("%Y"), "the broker's log has a date"
    status, same = ask("GET", f"/v1/erasures/{done['erasure']}")
    assert (status, same) == (200, done)
    assert _of(run, user, session) == set()

    _nothing_brings_him_back(run, ask, told, user, session)
    _a_new_history(run, settings, ask, told, user, items[0])


def _leave_traces(settings: Settings, ask: Ask, told: Told, user: str, session: str, items: list[str]) -> None:
    """Columns, events, a merged session, cached answers, impressions, a dead letter, the lake, a checkpoint, logs."""
    assert ask("PUT", f"/v1/users/{user}", {"country": "AT"})[0] == 200
    for who in ({"session_id": session}, {"user_id": user}, {"user_id": user, "session_id": session}):
        for item in items[:2]:
            event = {**who, "item_id": item, "event_type": "click", "page": f"/profile/{user}"}
            assert ask("POST", "/v1/events?wait=applied", event)[1]["applied"] is True
    assert ask("POST", f"/v1/users/{user}/merge", {"session_id": session})[0] == 202
    for _ in range(6):
        assert ask("POST", "/v1/recommend", {"user_id": user})[0] == 200
    assert ask("GET", f"/v1/recommend/{user}")[0] == 200
    assert ask("GET", f"/v1/users/{user}/nothing")[0] in (200, 404)
    assert len(_history(ask, user)) == 6
    producer = EventProducer(settings.kafka)
    try:
        bad = orjson.dumps({"user_id": user, "event_type": "click"})  # of what item?
        producer.send_blocking(EVENTS, [(user.encode(), bad)])
    finally:
        producer.close()
    time.sleep(1.0)  # impressions are on their way
    assert told("ingest")["dead_letters"] == {"missing": 1}
    told("state", "checkpoint")


def _nothing_brings_him_back(run: Run, ask: Ask, told: Told, user: str, session: str) -> None:
    """Neither a rebuild, nor a replay from zero, nor his dead letter."""
    assert _history(ask, user) == []
    assert ask("GET", f"/v1/users/{user}")[0] == 404
    told("state", "rebuild")
    databases = StatePaths.of(run.home).databases
    _until(lambda: len(list(databases.glob("0*"))) == 1)
    assert _history(ask, user) == []
    _replayed(run.home, databases)
    assert _history(ask, user) == []
    replayed = told("dlq", "replay")
    assert (replayed["replayed"], set(replayed["refused"])) == (0, {"erased"})
    assert _of(run, user, session) == set()


def _replayed(home: Path, databases: Path) -> None:
    """The writer goes on in an empty database: it reads the topics from their beginning."""
    position = Position.open(StatePaths.of(home).position)
    read, wanted = position.offsets()[EVENTS], current_generation(databases) + 1
    choose_generation(databases, wanted)
    _until(lambda: position.generation == wanted and position.lag == 0 and position.offsets()[EVENTS] == read)
    position.close()


def _a_new_history(run: Run, settings: Settings, ask: Ask, told: Told, user: str, item: str) -> None:
    assert ask("POST", "/v1/events?wait=applied", {"user_id": user, "item_id": item, "event_type": "click"})[0] == 202
    assert _history(ask, user) == [item]
    told("ingest")
    rows = snapshot(open_lake(settings, run.home), EVENTS).read(["user_id"])
    assert pc.sum(pc.equal(rows["user_id"], user)).as_py() == 1


def _of(run: Run, *ids: str) -> set[str]:
    """Files with one of the ids, but for those of a broker, which the report names."""
    kafka = {"kafka"} if (run.home / "kafka").exists() else set()
    found = {path for path in _in(run.home, *ids) if Path(path).parts[0] not in kafka}
    return found | _in(run.session, *ids)


def _in(folder: Path, *ids: str) -> set[str]:
    """Paths, below the folder, of the files with one of the ids, or as much of it as bounds in manifests have."""
    found = files_with(folder, *ids, *(name[:16] for name in ids))
    return {str(path.relative_to(folder)) for path in found}


def _history(ask: Ask, user: str) -> list[str]:
    status, found = ask("GET", f"/v1/users/{urllib.parse.quote(user)}/history")
    assert status == 200
    return [entry["item_id"] for entry in found["items"]]


def _until(done: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
