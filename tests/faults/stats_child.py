"""A writer of live figures as a process of its own, for the tests that kill it (arguments: home, broker)."""

import signal
import sys
from pathlib import Path

from app.settings import Settings
from app.stats.writer import StatsWriterLoop


def settings_for(broker: str) -> Settings:
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": broker, "partitions": 2},
            "stats": {"interval_s": 0.05, "batch_events": 200, "idle_s": 1.0},
            "surfaces": {"home": {}, "mail": {"impressions": "posted"}},
        }
    )


if __name__ == "__main__":
    loop = StatsWriterLoop(settings_for(sys.argv[2]), Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.run()
