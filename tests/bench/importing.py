"""`manta import` of ratings: seconds and CPU seconds of this process, by file type.

On the Apache Kafka of the settings, else on one that it starts.
"""

import argparse
import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from app.events.import_sources import FileSource
from app.events.importing import import_rows
from app.events.topics import ensure_topics
from app.settings import KafkaSettings, Settings, load_settings
from scripts import apache_kafka

NAMES = {"userId": "user_id", "movieId": "item_id", "rating": "value", "timestamp": "event_time"}


def run(rows: int = 1_000_000, bootstrap: str = "") -> dict[str, Any]:
    """Writes the files, imports each, prints the table.

    Args:
        rows: how many ratings.
        bootstrap: Kafka's address; empty: that of the settings, else one is started.

    Returns:
        `{"parquet": {"seconds", "cpu_seconds"}, "csv": {…}, "rows"}`.
    """
    address = bootstrap or load_settings().kafka.bootstrap_servers
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as folder:
        if address:
            return _measure(rows, address, Path(folder))
        started = apache_kafka.start(Path(folder) / "kafka")
        try:
            return _measure(rows, started, Path(folder))
        finally:
            apache_kafka.end(Path(folder) / "kafka", signal.SIGKILL)


def _measure(rows: int, address: str, folder: Path) -> dict[str, Any]:
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=address))
    ensure_topics(settings.kafka)
    rnd = np.random.default_rng(0)
    table = pa.table(
        {
            "userId": rnd.integers(0, 50_000, rows),
            "movieId": rnd.integers(0, 10_000, rows),
            "rating": rnd.integers(1, 11, rows) / 2,
            "timestamp": rnd.integers(1_400_000_000, 1_600_000_000, rows),
        }
    )
    pa.parquet.write_table(table, folder / "ratings.parquet")
    pa.csv.write_csv(table, folder / "ratings.csv")
    figures: dict[str, Any] = {"rows": rows}
    for kind in ("parquet", "csv"):
        spent = time.process_time()
        report = import_rows(FileSource(str(folder / f"ratings.{kind}")), "events", NAMES, settings)
        if report["sent"] != rows:
            raise AssertionError(f"import: found {report['sent']} rows sent, wanted {rows}")
        figures[kind] = {"seconds": report["seconds"], "cpu_seconds": round(time.process_time() - spent, 2)}
        print(f"{kind:>8} {figures[kind]['seconds']:>8.1f} s {figures[kind]['cpu_seconds']:>8.1f} CPU s")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kafka", default="", metavar="HOST:PORT")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.rows, given.kafka)
    if given.json:
        print(json.dumps(found))
