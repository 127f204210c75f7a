"""A node's state as a copy in the artifact store: a new node starts from it and catches up, instead of replaying.

A checkpoint is a folder `ID/` of RocksDB's files with `checkpoint.json` (their SHA-256), which is written last: without
it there is no checkpoint. Ids sort by time.
"""

import hashlib
import json
import logging
import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from app.errors import MantaError, StateUnavailable
from app.settings import Settings
from app.state.layout import FORMAT, StatePaths, current_generation, database
from app.state.store import StateStore

MANIFEST = "checkpoint.json"
_PIECE = 4 << 20
_PATIENCE_S = 60.0

log = logging.getLogger("manta.state")


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What was written.

    Attributes:
        checkpoint: its id.
        place: where it is.
        files, bytes: how much.
        removed: older checkpoints that were removed.
        seconds: how long it took.
    """

    checkpoint: str
    place: str
    files: int
    bytes: int
    removed: list[str]
    seconds: float


def make_checkpoint(store: StateStore, paths: StatePaths) -> None:
    """What the writer does when a checkpoint is wanted: it appears under its final name, or not at all."""
    fresh = paths.checkpoint.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        store.checkpoint(fresh)
        shutil.rmtree(paths.checkpoint, ignore_errors=True)
        fresh.rename(paths.checkpoint)
    except Exception:  # rocksdict raises bare exceptions; the writer goes on
        log.exception("no checkpoint could be made")
    paths.checkpoint_wanted.unlink(missing_ok=True)


def write_checkpoint(settings: Settings, home: Path) -> CheckpointReport:
    """Makes a checkpoint of this node's state, by its running writer or without one, and copies it to the store.

    Raises:
        StateUnavailable: there is no state, or the writer made no checkpoint.
        MantaError: the store cannot be written.
    """
    started, paths = time.monotonic(), StatePaths.of(home)
    shutil.rmtree(paths.checkpoint, ignore_errors=True)
    _make(settings, paths)
    place = settings.state.checkpoints or str(home / "checkpoints")
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    try:
        system, root = _store(place)
        files, size = _upload(system, f"{root}/{name}", paths.checkpoint)
        removed = _held(system, root)[: -settings.state.checkpoints_kept]
        for older in removed:
            system.delete_dir(f"{root}/{older}")
    except (OSError, ArrowException) as error:
        raise MantaError(f"checkpoints at {place}: found {error}, wanted a place that can be written") from None
    finally:
        shutil.rmtree(paths.checkpoint, ignore_errors=True)
    return CheckpointReport(name, f"{place}/{name}", files, size, removed, time.monotonic() - started)


def restore_newest(place: str, target: Path) -> str | None:
    """Copies the newest whole checkpoint into `target`, which is not there yet; its id, or None where there is none.

    A place that cannot be read, and a checkpoint that is damaged, are passed over with a line in the log: the topics
    can always be replayed.
    """
    try:
        system, root = _store(place)
        names = _held(system, root)
    except (OSError, ArrowException, MantaError) as error:
        log.warning("checkpoints at %s cannot be read, the topics are replayed: %s", place, error)
        return None
    fresh = target.with_suffix(".new")
    for name in reversed(names):
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            _download(system, f"{root}/{name}", fresh)
            fresh.rename(target)
        except (OSError, ArrowException, ValueError, KeyError, MantaError) as error:
            log.warning("checkpoint %s at %s is passed over: %s", name, place, error)
            shutil.rmtree(fresh, ignore_errors=True)
            continue
        log.info("the state starts from checkpoint %s at %s", name, place)
        return name
    return None


def _make(settings: Settings, paths: StatePaths) -> None:
    generation = current_generation(paths.databases)
    path = database(paths.databases, generation)
    if not path.exists():
        raise StateUnavailable(f"found no state in {paths.root}: nothing has been applied on this node yet")
    try:
        store = StateStore(path, settings, generation=generation)
    except StateUnavailable as error:
        if "lock" not in str(error).lower():
            raise
        _ask_writer(paths)
        return
    try:
        store.checkpoint(paths.checkpoint)
    finally:
        store.close()


def _ask_writer(paths: StatePaths) -> None:
    paths.checkpoint_wanted.touch()
    deadline = time.monotonic() + _PATIENCE_S
    while paths.checkpoint_wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if not paths.checkpoint.exists():
        paths.checkpoint_wanted.unlink(missing_ok=True)
        raise StateUnavailable(f"the state writer made no checkpoint within {_PATIENCE_S:.0f} s; its log says why")


def _store(place: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path of the store."""
    try:
        system, root = fs.FileSystem.from_uri(place if "://" in place else str(Path(place).absolute()))
    except (ArrowException, ValueError) as error:
        raise MantaError(f"state.checkpoints: found {place!r}, wanted a folder, s3:// or gs:// ({error})") from None
    return system, root.rstrip("/")


def _held(system: fs.FileSystem, root: str) -> list[str]:
    """Ids of the whole checkpoints, oldest first."""
    found = system.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    return sorted(Path(info.path).parent.name for info in found if info.base_name == MANIFEST)


def _upload(system: fs.FileSystem, folder: str, source: Path) -> tuple[int, int]:
    """(files, bytes) copied; the manifest comes last."""
    system.create_dir(folder)
    hashes: dict[str, str] = {}
    size = 0
    for file in sorted(source.iterdir()):
        digest = hashlib.sha256()
        with file.open("rb") as read, system.open_output_stream(f"{folder}/{file.name}") as write:
            while piece := read.read(_PIECE):
                digest.update(piece)
                write.write(piece)
                size += len(piece)
        hashes[file.name] = digest.hexdigest()
    with system.open_output_stream(f"{folder}/{MANIFEST}") as write:
        write.write(json.dumps({"format": FORMAT, "files": hashes}, indent=1).encode())
    return len(hashes), size


def _download(system: fs.FileSystem, folder: str, target: Path) -> None:
    with system.open_input_stream(f"{folder}/{MANIFEST}") as read:
        manifest: dict[str, Any] = json.loads(read.read())
    if manifest["format"] != FORMAT:
        raise MantaError(f"found format {manifest['format']}, wanted {FORMAT}")
    target.mkdir(parents=True)
    for name, wanted in manifest["files"].items():
        if Path(name).name != name:
            raise MantaError(f"found a file {name!r}, wanted plain names")
        digest = hashlib.sha256()
        with system.open_input_stream(f"{folder}/{name}") as read, (target / name).open("wb") as write:
            while piece := read.read(_PIECE):
                digest.update(piece)
                write.write(piece)
        if digest.hexdigest() != wanted:
            raise MantaError(f"{name}: found SHA-256 {digest.hexdigest()[:12]}…, wanted {wanted[:12]}…")
