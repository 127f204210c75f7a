"""A lock on a file that says who holds it; the system gives it back when its holder ends, also by kill -9."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from app.errors import Conflict


@contextlib.contextmanager
def hold(file: Path, what: str, /, **about: str) -> Iterator[None]:
    """Holds the lock while the block runs.

    Args:
        file: its folder is made where it is missing.
        what: what is locked, for the message.
        about: what else others are told of the holder.

    Raises:
        Conflict: somebody holds it; says who, and since when.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{what}: found it held by {_holder(file)}, wanted nobody to hold {file}") from None
        said = {"process": os.getpid(), "machine": os.uname().nodename, "since": time.time(), **about}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(said).encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(file: Path) -> str:
    try:
        said = json.loads(file.read_text())
        since = datetime.fromtimestamp(said.pop("since"), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        process, machine = said.pop("process"), said.pop("machine")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it has just taken it
        return "a process that has not said who it is yet"
    more = "".join(f", {key} {value}" for key, value in said.items())
    return f"process {process} on {machine} since {since}{more}"
