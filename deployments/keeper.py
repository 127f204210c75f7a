"""The system's keeper: ends a temporary system whose users were killed, and restarts the embedded broker.

    python -m deployments.keeper HOME SESSION

One small process per system, started and ended by `deployments.cluster`.
"""

import logging
import sys
import time
from pathlib import Path

from app.errors import MantaError
from deployments import cluster, recovery
from deployments.environment import child_environment
from deployments.run import Run, locked, read, write

PERIOD_S = 0.5
RETRY_S = 5.0
LOG = logging.getLogger(__name__)


def keep(home: Path, session: Path) -> None:
    """Watches until the system of that session is gone."""
    while True:
        run = read(home)
        if run is None or run.session != session:
            return
        if run.temporary and not run.wanted():
            LOG.warning("who needed %s is gone: ending it", session)
            cluster.stop(home)
            return
        if run.broker is not None and not run.broker.alive():
            try:
                restart_if_dead(home, session)
            except (MantaError, OSError) as error:  # a full disk, for example: it may be mended
                LOG.error("the embedded broker died and could not be started again; trying once more: %s", error)
                time.sleep(RETRY_S)
        time.sleep(PERIOD_S)


def restart_if_dead(home: Path, session: Path) -> Run | None:
    """Starts the embedded broker again where it has died, and restores what it lost; returns the new run."""
    with locked(home):
        run = read(home)
        if run is None or run.session != session or run.broker is None or run.broker.alive():
            return None
        process = recovery.restart(run, child_environment({}))
        LOG.warning("the embedded broker died: started again as process %d", process.pid)
        return write(run.model_copy(update={"broker": process, "broker_restarts": run.broker_restarts + 1}))


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s keeper: %(message)s")
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
