"""What the keeper runs after the embedded broker has died: `python -m deployments.recovery HOME PORT`.

A process of its own, so that the keeper stays small. The broker listens on PORT alone, which nobody else knows:
losses are noted before anything new is produced.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from app.errors import MantaError
from app.settings import load_settings
from deployments import broker
from deployments.processes import Process, end
from deployments.run import Run

LIMIT_S = 60.0
LOG = logging.getLogger(__name__)


def restart(run: Run, environment: dict[str, str]) -> Process:
    """The embedded broker, started again: first where nobody is, to compare it with the lake, then where it was.

    Raises:
        MantaError: it does not start.
    """
    hidden = broker.start(run.home, run.ports.kafka_hidden, environment)
    try:
        command = [sys.executable, "-P", "-m", "deployments.recovery", str(run.home), str(run.ports.kafka_hidden)]
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        LOG.warning("what the broker has lost could not be restored (%s): `manta ingest` will say what is gone", error)
    finally:
        end([hidden], 5.0)
    return broker.start(run.home, run.ports.kafka, environment)


def main(home: Path, port: int) -> int:
    """Compares, records and restores; prints what was found. Returns the exit code."""
    from app.lake.losses import make_good
    from app.lake.tables import open_lake

    try:
        settings = load_settings(Path(os.environ["MANTA_SETTINGS"]))
        kafka = settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"})
        sys.stdout.write(json.dumps(make_good(open_lake(settings, home), kafka)) + "\n")
    except MantaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
