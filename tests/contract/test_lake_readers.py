"""The lake is plain Iceberg: pyiceberg and DuckDB alone read it, without a line of Manta."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from app.events.columns import EVENT_COLUMNS
from app.events.entities import ENTITY_COLUMNS
from app.events.schema import EVENTS, ITEMS
from app.lake.commit import Progress, TopicOffsets, append, replace
from app.lake.compaction import compact
from app.lake.tables import open_lake
from app.settings import LakeSettings, Settings

DAY_US = 86_400_000_000
FOREIGNER = """
import json, sys
import duckdb
from pyiceberg.catalog import load_catalog

folder = sys.argv[1]
catalog = load_catalog("manta", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
events, items = catalog.load_table("manta.events"), catalog.load_table("manta.items")
lake = duckdb.connect()
lake.register("planned", events.scan(row_filter="event_time >= '1970-01-03T00:00:00+00:00'").to_arrow())
files = [task.file.file_path.removeprefix("file://") for task in events.scan().plan_files()]
counts = lake.execute(
    "select event_type, count(*), sum(value) from read_parquet(?) group by 1 order by 1", [files]
).fetchall()
print(json.dumps({
    "counts": counts,
    "late": lake.execute("select count(*) from planned").fetchone()[0],
    "items": items.scan().to_arrow().select(["item_id", "available", "columns"]).to_pylist(),
    "offsets": json.loads(events.current_snapshot().summary["manta.offsets"]),
    "manta": sorted(name for name in sys.modules if name.split(".")[0] in ("app", "tune", "deployments", "scripts")),
}))
"""


def test_duckdb_and_pyiceberg_alone_read_the_lake(tmp_path: Path) -> None:
    lake = open_lake(Settings(lake=LakeSettings(partition="day", max_open_partitions=2)), tmp_path)
    progress = Progress().moved(EVENTS, TopicOffsets("id", {0: 12}))
    for first in (0, 6):
        rows = [
            {
                "event_id": f"e{number}",
                "user_id": "ü",
                "event_type": "click" if number % 3 else "rating",
                "event_time": (number % 4) * DAY_US,
                "record_time": number * 1_000_000,
                "value": float(number),
                "partition": 0,
                "offset": number,
            }
            for number in range(first, first + 6)
        ]
        append(lake.table(EVENTS), pa.Table.from_pylist(rows, EVENT_COLUMNS), progress, max_open_partitions=2)
    compact(lake, EVENTS, target_bytes=1_000_000)
    item = {"item_id": "1", "available": False, "columns": '{"a":1}', "partition": 0, "offset": 0}
    items = pa.Table.from_pylist([item], ENTITY_COLUMNS[ITEMS])
    replace(lake.table(ITEMS), items, Progress().moved(ITEMS, TopicOffsets("id", {0: 1})))
    done = subprocess.run(
        [sys.executable, "-I", "-c", FOREIGNER, str(tmp_path / "lake")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "counts": [["click", 8, 48.0], ["rating", 4, 18.0]],
        "late": 6,
        "items": [{"item_id": "1", "available": False, "columns": '{"a":1}'}],
        "offsets": {EVENTS: {"id": "id", "next": {"0": 12}}},
        "manta": [],
    }
