"""Every place but the state that an erasure clears; and the process of its own that does so in a running system.

    python -m deployments.erase_files HOME ERASURE < SETTINGS.json

prints `{"reports": […], "failures": […]}`.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from app.bundles.erase import BundlesPlace, Promote
from app.erase import StaysClear, alone, clear_each
from app.erasure.ledger import ErasureLedger
from app.erasure.loose_files import LooseFilesPlace
from app.erasure.places import Place, PlaceReport
from app.errors import StateUnavailable
from app.events.erase_letters import LettersPlace
from app.events.erase_log import LogPlace, Readers
from app.lake.erase import LakePlace
from app.settings import Settings
from app.state.erase_checkpoints import CheckpointsPlace
from app.stats.reader import StatsReader
from deployments.cluster import endpoint_of
from deployments.promoting import promote
from deployments.retention import readers_of
from deployments.run import read as read_run

_AGAIN_S = 0.5
Cleared = tuple[list[PlaceReport], list[str]]


def places_of(settings: Settings, home: Path, promote: Promote | None) -> list[Place]:
    """The places in the order in which they are cleared: first what the others are made of, last what all have read.

    Args:
        settings: with the broker's address.
        home: MANTA_HOME.
        promote: how a bundle goes live where a system is up; None: none is.
    """
    run = read_run(home)
    return [
        LakePlace(settings, home),
        BundlesPlace(settings, home, promote),
        CheckpointsPlace(settings, home),
        LooseFilesPlace(home, run.session if run is not None else None),
        StaysClear(),
        LettersPlace(settings),
        LogPlace(settings, lambda: _readers(settings, home)),
    ]


def _readers(settings: Settings, home: Path) -> Readers:
    """Reader → topic → partition → next offset."""
    readers: dict[str, Mapping[str, Mapping[int, int]]] = dict(readers_of(settings, home))
    figures = StatsReader(settings.stats, home, f"erasure-{os.getpid()}")
    try:
        readers["figures"] = figures.offsets()
    except StateUnavailable:  # there are none yet: what is deleted before is in none
        pass
    finally:
        figures.close()
    return readers


def main() -> None:
    """Exit code 0 also where places failed: they are in what is printed."""
    os.nice(10)
    settings, home = Settings.model_validate_json(sys.stdin.read()), Path(sys.argv[1])
    ledger = ErasureLedger(settings, home)
    endpoint = endpoint_of(settings)
    places = places_of(settings, home, lambda bundle, surfaces: promote(endpoint, bundle, surfaces))
    reports, failures = _alone(home, lambda: clear_each(ledger.erasure(sys.argv[2]), places))
    json.dump({"reports": [dataclasses.asdict(one) for one in reports], "failures": failures}, sys.stdout)


def _alone(home: Path, work: Callable[[], Cleared]) -> Cleared:
    """Does it once nobody else does: whoever began the last such process may be dead, and it be at work."""
    while True:
        with alone(home, "erasing-files") as mine:
            if mine:
                return work()
        time.sleep(_AGAIN_S)


if __name__ == "__main__":
    main()
