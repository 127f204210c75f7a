"""A broker, a lake and what was acknowledged: what the tests of ingest stand on."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from app.events.blocks import read_here
from app.events.dead_letters import read_dead_letters
from app.events.producer import EventProducer
from app.events.schema import EVENTS
from app.events.topics import bounds
from app.lake.identities import IDENTITIES
from app.lake.ingest import IngestJob, IngestReport
from app.lake.snapshot import snapshot
from app.lake.tables import Lake, open_lake
from app.settings import Settings


@dataclass
class World:
    """A broker, a Ray, a lake, and what was acknowledged."""

    settings: Settings
    home: Path
    ledger: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    sent: list[tuple[bytes, bytes]] = field(default_factory=list)
    _made: int = 0

    @classmethod
    def of(cls, address: str, home: Path, **sections: dict[str, Any]) -> "World":
        """A lake in `home` beside a broker; the settings are in a file there too, for other processes."""
        values: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": address, "partitions": 3},
            "lake": {"partition": "month", "max_open_partitions": 5},
            "ingest": {"chunk_rows": 400, "task_rows": 200},
            "ray": {"num_cpus": 2},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        (home / "manta.yaml").write_text(json.dumps(values))
        return cls(Settings.model_validate(values), home)

    @property
    def lake(self) -> Lake:
        return open_lake(self.settings, self.home)

    def produce(self, count: int, seed: int) -> None:
        """`count` events, some twice, some rubbish between them."""
        rnd = random.Random(seed)
        messages: list[tuple[bytes, bytes]] = []
        for _ in range(count):
            self._made += 1
            user, name = f"u{rnd.randrange(50)}", f"e{self._made}"
            event = {"user_id": user, "event_id": name, "item_id": "i", "event_type": "click"}
            event["event_time"] = f"20{rnd.randrange(10, 24)}-01-01T00:00:00Z"
            copies = 2 if rnd.random() < 0.1 else 1
            messages += [(user.encode(), orjson.dumps(event))] * copies
            self.ledger[name] += 1
            self.sent.append(messages[-1])
            if rnd.random() < 0.05:
                messages.append((user.encode(), b"rubbish"))
                self.bad += 1
        self._send(messages)

    def repeat(self, count: int, seed: int) -> None:
        """`count` of the events that were produced, once more."""
        self._send(random.Random(seed).choices(self.sent, k=count))

    def _send(self, messages: list[tuple[bytes, bytes]]) -> None:
        producer = EventProducer(self.settings.kafka, delivery_timeout_s=30)
        producer.send_blocking(EVENTS, messages)
        producer.close()

    def ingest(self, fault: str = "") -> subprocess.Popen[str]:
        """An ingest as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ingest_child", str(self.home)],
            env=os.environ | ({"MANTA_FAULT": fault} if fault else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ingest_here(self, *, accept_gap: bool = False) -> IngestReport:
        """An ingest in this process."""
        kept = self.home / IDENTITIES
        job = IngestJob(self.settings, self.lake, read_here, accept_gap=accept_gap, identities=kept)
        try:
            job.take_all()
        finally:
            job.close()
        return job.report

    def check(self) -> None:
        """Every event once, every bad message once, offsets at the log's end."""
        now = snapshot(self.lake, EVENTS)
        found = Counter(now.read(["event_id"])["event_id"].to_pylist())
        assert found == self.ledger
        assert now.progress.topics[EVENTS].next == bounds(self.settings.kafka, [EVENTS])[EVENTS].end
        letters = [(one["topic"], one["partition"], one["offset"]) for one in read_dead_letters(self.settings.kafka)]
        assert len(letters) == len(set(letters)) == self.bad


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found
