"""A bundle's folder appears whole or not at all: on the disk first, then renamed into place."""

import os
from pathlib import Path

from app.errors import BundleError

# Before what a bundle's folder is called until it is whole, while it comes from elsewhere, and once it goes.
WRITING, COMING, GOING = ".writing-", ".coming-", ".gone-"


def appear(source: Path, target: Path) -> None:
    """Renames a folder into place once every file and folder in it is on the disk.

    Raises:
        BundleError: something else is there.
        OSError: the disk is full.
    """
    for path in [*source.rglob("*"), source]:
        _sync(path)
    try:
        source.rename(target)
    except OSError as error:
        if target.exists():
            raise BundleError(f"{target}: found a bundle of that id, wanted a new id") from None
        raise error
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
