"""`manta dlq`: what a person reads of a letter, and words that name nothing."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from app.settings import Settings
from deployments import cluster
from scripts.cli import app as manta

RAW = '{"note": "größer\x1b[2J"'.encode() + b"\xff"


@pytest.fixture(autouse=True)
def _one_letter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    letter = {"topic": "events", "offset": 7, "key": base64.b64encode(b"u").decode()}

    @contextmanager
    def attach(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(settings=Settings())

    def show(*_: object) -> dict[str, Any]:
        return letter | {"raw": base64.b64encode(RAW).decode()}

    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.setattr(cluster, "attach", attach)
    monkeypatch.setattr("app.events.dead_letters.show_dead_letter", show)


def test_a_letter_is_shown_as_text_that_a_terminal_can_bear_and_as_json_byte_for_byte() -> None:
    shown = CliRunner().invoke(manta, ["dlq", "show", "events/3/7"])
    assert shown.exit_code == 0, shown.output
    assert 'raw     {"note": "größer\\x1b[2J"\\xff\n' in shown.stdout
    told = json.loads(CliRunner().invoke(manta, ["dlq", "show", "events/3/7", "--json"]).stdout)
    assert base64.b64decode(told["raw"]) == RAW


def test_a_reason_that_there_is_not_is_refused_instead_of_choosing_nothing() -> None:
    found = CliRunner().invoke(manta, ["dlq", "replay", "--reason", "jsn"])
    assert "--reason: found 'jsn', wanted one of json, type" in str(found.exception)
