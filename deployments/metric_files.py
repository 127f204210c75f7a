"""The files that the metrics of a node's replicas live in, so that `/metrics` of any one covers them all.

prometheus_client decides when it is imported whether its values live in files; here they always do. A replica holds a
lock for as long as it lives. What those that are gone have counted, the next that starts folds into one file a type.
"""

import contextlib
import fcntl
import json
import logging
import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue

logger = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Whoever was stopped in the middle of a fold holds up nobody for longer.
LOCK_S = 2.0
_ALIVE = ".alive"
_GONE = "gone"
# In the file of those that are gone: names of the files that are in it already, should they still be there.
_FOLDED = "manta_folded_files"


def keep_in_files(folder: Path, replica: str) -> None:
    """Makes every metric of this process live in `folder`, until its end. Before the first metric is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, fcntl.LOCK_EX) as alone:
        _hold(folder / f"{replica}{_ALIVE}")
        if alone:
            _fold(folder)
    os.environ[FOLDER] = str(folder)
    values.ValueClass = MultiProcessValue(process_identifier=lambda: replica)  # type: ignore[no-untyped-call]


def exposition(folder: Path) -> bytes:
    """Prometheus text over all files of the folder; gauges of replicas that are gone are left out."""
    registry = CollectorRegistry()
    with _locked(folder, fcntl.LOCK_SH):
        registry.register(_Files(folder))
        return generate_latest(registry)


class _Files(Collector):
    """All files at one moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        folded = {name for file in self._folder.glob(f"*_{_GONE}.db") for name in _read(file)[1]}
        files = [
            file
            for file in self._folder.glob("*.db")
            if file.name not in folded
            and file.stat().st_size
            and (not file.name.startswith("gauge_") or _lives(self._folder, _replica(file)))
        ]
        merged: Iterable[Metric] = MultiProcessCollector.merge(map(str, files))  # type: ignore[no-untyped-call]
        return (metric for metric in merged if metric.name != _FOLDED)


def _fold(folder: Path) -> None:
    """Under the lock. A kill at any point counts nothing twice and loses nothing."""
    replicas = {_replica(file) for file in folder.glob("*.db")} | {file.stem for file in folder.glob(f"*{_ALIVE}")}
    left = [file for name in replicas - {_GONE} if not _lives(folder, name) for file in folder.glob(f"*{name}.*")]
    for kind in {file.name.partition("_")[0] for file in left if file.suffix == ".db"} - {"gauge"}:
        _add(folder / f"{kind}_{_GONE}.db", [file for file in left if file.name.startswith(f"{kind}_")])
    for file in left:
        file.unlink(missing_ok=True)


def _add(target: Path, files: Iterable[Path]) -> None:
    """Adds the values of the files to those of the target, in one step with the note that they are in it."""
    totals, folded = _read(target) if target.exists() else (defaultdict(float), set())
    for file in files:
        if file.name not in folded:
            for key, value in _read(file)[0].items():
                totals[key] += value
    fresh = target.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    written = MmapedDict(str(fresh))  # type: ignore[no-untyped-call]
    for key, value in totals.items():
        written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    for file in files:
        written.write_value(mmap_key(_FOLDED, _FOLDED, ["file"], [file.name], ""), 1.0, 0.0)  # type: ignore
    written.close()  # type: ignore[no-untyped-call]
    fresh.replace(target)


def _read(file: Path) -> tuple[defaultdict[str, float], set[str]]:
    """(values by key, names of the files that are folded in it)."""
    totals: defaultdict[str, float] = defaultdict(float)
    folded: set[str] = set()
    try:
        for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
            metric, _, labels, _ = json.loads(key)
            if metric == _FOLDED:
                folded.add(labels["file"])
            else:
                totals[key] = value
    except (OSError, RuntimeError, ValueError, struct.error) as error:  # killed while it made the file
        logger.warning("%s cannot be read to its end: %s", file, error)
    return totals, folded


def _replica(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def _hold(file: Path) -> None:
    """A lock that ends with this process: the descriptor is never closed."""
    fcntl.flock(os.open(file, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_SH)


def _lives(folder: Path, replica: str) -> bool:
    try:
        handle = os.open(folder / f"{replica}{_ALIVE}", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def _locked(folder: Path, mode: int) -> Iterator[bool]:
    """Holds the folder's lock, False: it could not be had in time."""
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        yield _flocked(handle, mode)
    finally:
        os.close(handle)


def _flocked(handle: int, mode: int) -> bool:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True
