"""Old bundles go: out of the registry first, then from the disk; what a killed process left half goes with them."""

import contextlib
import logging
import shutil
import time
from pathlib import Path

from app.bundles.registry import Registry
from app.bundles.whole import COMING, GOING, WRITING

LEFT_S = 86_400.0  # what nobody has written to for so long is a killed process's

log = logging.getLogger(__name__)


def retire(registry: Registry, parent: Path, keep: int) -> list[str]:
    """Removes all but the `keep` newest bundles; what is live, leads back or is being promoted stays besides.

    Args:
        parent: where the home's bundles are, for what was left half.

    Returns:
        The ids that went.
    """
    gone = registry.retire(keep)
    for row in gone:
        going = row.folder.with_name(GOING + row.id)
        with contextlib.suppress(FileNotFoundError):  # it was on another machine, or went already
            row.folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)
    for path in parent.iterdir() if parent.is_dir() else ():
        if path.name.startswith(GOING) or (path.name.startswith((WRITING, COMING)) and _left(path)):
            shutil.rmtree(path, ignore_errors=True)
    if gone:
        log.info("bundles %s have gone", ", ".join(row.id for row in gone))
    return [row.id for row in gone]


def _left(folder: Path) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
    except FileNotFoundError:
        return False  # somebody is at work there
    return time.time() - newest > LEFT_S
