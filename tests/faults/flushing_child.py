"""A state writer that flushes without a pause, as a process of its own (arguments: database, position, seconds).

Message n is a click of user n % USERS on the item n.
"""

import sys
import time
from pathlib import Path

from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.position import Position
from app.state.store import StateStore

USERS = 60


def write(path: Path, position: Position, seconds: float) -> None:
    store = StateStore(path, Settings())
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        name = str(number % USERS)
        event = StateEvent(0, number, number, None, name, None, str(number), "click", number * 1000, float("nan"))
        number += 1
        position.publish(store.apply(Batch(events=[event], offsets={("events", 0): number})))
        if number % 12 == 0:
            for family in store._families.values():
                family.flush(wait=False)  # beside what comes next, as RocksDB does when its memory is full
        time.sleep(0.0003)
    store.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Position.create(Path(sys.argv[2])), float(sys.argv[3]))
