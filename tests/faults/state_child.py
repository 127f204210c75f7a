"""A state writer as a process of its own, for the tests that kill it (arguments: home, broker)."""

import signal
import sys
from pathlib import Path

from app.settings import Settings
from app.state.writer import StateWriterLoop


def settings_for(broker: str) -> Settings:
    return Settings.model_validate(
        {"kafka": {"bootstrap_servers": broker, "partitions": 2}, "state": {"max_history": 40, "batch_events": 300}}
    )


if __name__ == "__main__":
    loop = StateWriterLoop(settings_for(sys.argv[2]), Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.run()
