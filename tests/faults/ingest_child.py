"""`python -m tests.faults.ingest_child HOME`: one ingest without Ray, as the tests that kill it start it."""

import json
import sys
from pathlib import Path

from app.events.blocks import read_here
from app.lake.ingest import IngestJob
from app.lake.tables import open_lake
from app.settings import load_settings


def main(home: Path) -> None:
    settings = load_settings(home / "manta.yaml")
    job = IngestJob(settings, open_lake(settings, home), read_here)
    try:
        job.take_all()
    finally:
        job.close()
    print(json.dumps({"rows": dict(job.report.rows), "lost_commits": job.report.lost_commits}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
