"""`manta import` of ratings: seconds and CPU seconds of this process, by file type, over Kafka and into the lake.

On the Apache Kafka of the settings, else on one that it starts.
"""

import argparse
import json
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from app.events.import_sources import FileSource
from app.events.importing import import_rows
from app.events.schema import EVENTS
from app.events.topics import ensure_topics
from app.lake.bulk import import_into_lake
from app.lake.tables import open_lake
from app.settings import KafkaSettings, LakeSettings, Settings, load_settings
from app.state.rebuild import rebuild
from scripts import apache_kafka

NAMES = {"userId": "user_id", "movieId": "item_id", "rating": "value", "timestamp": "event_time"}


def run(rows: int = 1_000_000, bootstrap: str = "") -> dict[str, Any]:
    """Writes the files, imports each, prints the table.

    Args:
        rows: how many ratings.
        bootstrap: Kafka's address; empty: that of the settings, else one is started.

    Returns:
        `{"rows", CASE: {"seconds", "cpu_seconds"}}` for the cases `parquet`, `csv` and `jsonl` over Kafka, `lake`
        (Parquet straight there, with `peak_bytes`, the most that this process ever had) and `rebuild` (of the state).
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
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=address), lake=LakeSettings(partition="month"))
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
    with (folder / "ratings.jsonl").open("w") as lines:
        for batch in table.to_batches(50_000):
            lines.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    figures: dict[str, Any] = {"rows": rows}

    def measure(case: str, work: Callable[[], int]) -> None:
        started, spent = time.perf_counter(), time.process_time()
        if (found := work()) != rows:
            raise AssertionError(f"{case}: found {found} rows, wanted {rows}")
        taken = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - spent}
        figures[case] = {name: round(value, 2) for name, value in taken.items()}
        print(f"{case:>8} {taken['seconds']:>8.1f} s {taken['cpu_seconds']:>8.1f} CPU s")

    def source(kind: str) -> FileSource:
        return FileSource(str(folder / f"ratings.{kind}"))

    lake = open_lake(settings, folder)
    measure("lake", lambda: int(import_into_lake(source("parquet"), EVENTS, NAMES, settings, lake)["written"]))
    figures["lake"]["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measure("rebuild", lambda: rebuild(settings, folder, lake).events)  # Kafka has nothing yet
    for kind in ("parquet", "csv", "jsonl"):
        measure(kind, lambda kind=kind: int(import_rows(source(kind), EVENTS, NAMES, settings)["sent"]))  # type: ignore[misc]
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
