"""`python -m tests.faults.ingest_child HOME`: one ingest without Ray, as the tests that kill it start it."""

import json
import sys
from pathlib import Path

from app.events.blocks import read_here
from app.lake.identities import IDENTITIES
from app.lake.ingest import IngestJob
from app.lake.tables import open_lake
from app.settings import load_settings


def main(home: Path) -> None:
    settings = load_settings(home / "manta.yaml")
    job = IngestJob(settings, open_lake(settings, home), read_here, identities=home / IDENTITIES)
    before = memory("VmRSS")
    try:
        job.take_all()
    finally:
        job.close()
    report = {"rows": dict(job.report.rows), "lost_commits": job.report.lost_commits}
    print(json.dumps(report | {"dead_letters": job.report.dead_letters, "grown_bytes": memory("VmHWM") - before}))


def memory(name: str) -> int:
    """Resident bytes of this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
