"""Erasure on the embedded broker: its file holds the id no more once the log was deleted."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.events.topics import ensure_topics
from app.settings import Settings
from deployments import broker
from deployments.processes import end
from tests.faults.erasing import erase_on_broker
from tests.search.files import files_with


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = broker.start(tmp_path, port, dict(os.environ))
    address = {"bootstrap_servers": f"127.0.0.1:{port}", "partitions": 2, "long_polls": False}
    found = Settings.model_validate({"kafka": address})
    ensure_topics(found.kafka)
    yield found
    end([process], 3.0)


def test_what_is_deleted_is_gone_from_its_file(settings: Settings, tmp_path: Path) -> None:
    without, deleted = erase_on_broker(settings, tmp_path)
    assert not without["kafka: events"].cleared
    assert deleted["kafka: events"].cleared
    deadline = time.monotonic() + 30
    while files_with(tmp_path / "kafka", '"user_id":"0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f') and time.monotonic() < deadline:
        time.sleep(0.2)  # it saves every 2 s
    assert files_with(tmp_path / "kafka", '"user_id":"0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f') == []
    assert files_with(tmp_path / "kafka", "somebody-else"), "letters of others"
