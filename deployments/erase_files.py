"""Clears the files of one erasure, in a process of its own.

    python -m deployments.erase_files HOME ERASURE < SETTINGS.json

Prints `{"reports": […], "failures": […]}`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from app.erase import clear_each, file_places
from app.erasure.ledger import ErasureLedger
from app.settings import Settings


def main() -> None:
    """Exit code 0 also where places failed: they are in what is printed."""
    os.nice(10)
    settings, home = Settings.model_validate_json(sys.stdin.read()), Path(sys.argv[1])
    ledger = ErasureLedger(settings, home)
    reports, failures = clear_each(ledger.erasure(sys.argv[2]), file_places(settings, home))
    json.dump({"reports": [dataclasses.asdict(one) for one in reports], "failures": failures}, sys.stdout)


if __name__ == "__main__":
    main()
