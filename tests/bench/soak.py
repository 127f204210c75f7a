"""A million events while broker, ingest, state writer and gateways are killed -9 at random: none lost, none doubled."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from app.errors import MantaError
from scripts import apache_kafka
from tests.faults.soak import TARGETS, soak


def run(events: int = 1_000_000, least_kills: int = 20) -> dict[str, Any]:
    """Counts of kills, events and what went wrong."""
    if missing := apache_kafka.missing_tools():
        raise MantaError(f"soak: Apache Kafka needs {' and '.join(missing)}: install them and run this again")
    apache_kafka.install()
    home = Path(tempfile.mkdtemp(prefix="ms-", dir="/tmp"))
    try:
        report = soak(home, home / "broker", events=events, least_kills=least_kills)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    report.show()
    return {
        "acknowledged": report.acknowledged,
        "seconds": report.seconds,
        "kills": {target: report.kills[target] for target in TARGETS},
        "lost": report.lost_in_lake,
        "doubled": report.doubled_in_lake,
        "histories_that_differ": len(report.wrong_histories),
    }
