"""A node's state as a copy in the artifact store: a new node starts from it and catches up, instead of replaying.

A checkpoint is a folder `ID/` of RocksDB's files with `checkpoint.json` (their SHA-256), which is written last: without
it there is no checkpoint. Ids sort by time.
"""

import hashlib
import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.artifacts import Place, StoreError, below
from app.errors import MantaError, StateUnavailable
from app.settings import Settings
from app.state.layout import FORMAT, StatePaths, current_generation, database
from app.state.position import gone_shards
from app.state.room import is_held_by_another
from app.state.shares import Share, node_share, shares
from app.state.store import StateStore

MANIFEST = "checkpoint.json"
SHARD = "shard-"  # folders of shards begin so, among those of every node's own database
_PATIENCE_S = 60.0
_STAMP, _NAME = "%Y%m%dT%H%M%S", re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
_UNFINISHED = timedelta(days=1)

log = logging.getLogger("manta.state")


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What was written.

    Attributes:
        checkpoint: its id.
        place: where it is.
        files, bytes: how much.
        removed: older checkpoints that were removed, and half ones that somebody had begun a day before.
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


def checkpoints_place(settings: Settings, home: Path) -> str:
    """The folder or address where this system's checkpoints are."""
    return settings.state.checkpoints or str(home / "checkpoints")


def place_of(place: str, share: Share) -> str:
    """Where among the checkpoints those of a share are."""
    return below(place, f"{SHARD}{share.shard}-of-{share.of}") if share.is_shard else place


def write_checkpoints(settings: Settings, home: Path) -> list[CheckpointReport]:
    """Checkpoints of all databases of the state that are on this node, each as `write_checkpoint`."""
    gone = gone_shards(home)
    here = [
        share
        for share in shares(settings.state)
        if not share.is_shard or (share.shard not in gone and StatePaths.of(home).shard(share.shard).databases.exists())
    ]
    return [write_checkpoint(settings, home, share) for share in here]


def write_checkpoint(settings: Settings, home: Path, share: Share | None = None) -> CheckpointReport:
    """Makes a checkpoint of this node's state, by its running writer or without one, and copies it to the store.

    `share`: None: what is every node's.

    Raises:
        StateUnavailable: there is no state, it is of a shard that has gone to another node, or the writer made no
            checkpoint.
        MantaError: the store cannot be written.
    """
    share = node_share(settings.state) if share is None else share
    if share.shard in gone_shards(home):  # it would pass for the newest, and make room for itself
        raise StateUnavailable(f"{share}: found it on another node, wanted it here")
    started, paths = time.monotonic(), StatePaths.of(home).shard(share.shard)
    shutil.rmtree(paths.checkpoint, ignore_errors=True)
    _make(settings, paths, share)
    place = place_of(checkpoints_place(settings, home), share)
    name = f"{datetime.now(UTC):{_STAMP}}-{secrets.token_hex(3)}"
    try:
        store = Place.of(place)
        files, size = _upload(store / name, paths.checkpoint)
        _require_whole(store, name)
        whole = store.folders_with(MANIFEST)
        removed = whole[: -settings.state.checkpoints_kept] + _broken_off(store.folders(), whole)
        for older in removed:
            store.remove(older)
    except StoreError as error:
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
        store = Place.of(place)
        names = store.folders_with(MANIFEST)
    except (*StoreError, MantaError) as error:
        log.warning("checkpoints at %s cannot be read, the topics are replayed: %s", place, error)
        return None
    fresh = target.with_suffix(".new")
    for name in reversed(names):
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            _download(store / name, fresh)
            fresh.rename(target)
        except (*StoreError, ValueError, KeyError, MantaError) as error:
            log.warning("checkpoint %s at %s is passed over: %s", name, place, error)
            shutil.rmtree(fresh, ignore_errors=True)
            continue
        log.info("the state starts from checkpoint %s at %s", name, place)
        return name
    return None


def _broken_off(folders: Sequence[str], whole: Collection[str]) -> list[str]:
    """Checkpoints that were begun and not finished, and nobody can still be writing."""
    latest = f"{datetime.now(UTC) - _UNFINISHED:{_STAMP}}"
    return [name for name in folders if name not in whole and _NAME.fullmatch(name) and name < latest]


def _make(settings: Settings, paths: StatePaths, share: Share) -> None:
    generation = current_generation(paths.databases)
    path = database(paths.databases, generation)
    if not path.exists():
        raise StateUnavailable(f"found no state in {paths.root}: nothing has been applied on this node yet")
    try:
        store = StateStore(path, settings, generation=generation, share=share)
    except StateUnavailable as error:
        if not is_held_by_another(error):
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


def _upload(place: Place, source: Path) -> tuple[int, int]:
    """(files, bytes) copied; the manifest comes last."""
    files = sorted(source.iterdir())
    size = sum(place.put(file.name, file) for file in files)
    manifest = source / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": {file.name: _hash(file) for file in files}}, indent=1))
    place.put(MANIFEST, manifest)
    return len(files), size


def _require_whole(store: Place, name: str) -> None:
    """An erasure removes what it finds half written: it may be of the state as it was before.

    Raises:
        MantaError: files are missing; nothing is left.
    """
    found: dict[str, Any] = json.loads((store / name).read(MANIFEST))
    if not all((store / name).has(file) for file in found["files"]):
        store.remove(name)
        raise MantaError(f"checkpoint {name}: an erasure removed files of it, wanted it whole; write another")


def _download(place: Place, target: Path) -> None:
    place.get(MANIFEST, target / MANIFEST)
    manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).unlink()
    if manifest["format"] != FORMAT:
        raise MantaError(f"found format {manifest['format']}, wanted {FORMAT}")
    for name, wanted in manifest["files"].items():
        if Path(name).name != name:
            raise MantaError(f"found a file {name!r}, wanted plain names")
        place.get(name, target / name)
        if (found := _hash(target / name)) != wanted:
            raise MantaError(f"{name}: found SHA-256 {found[:12]}…, wanted {wanted[:12]}…")


def _hash(file: Path) -> str:
    with file.open("rb") as read:
        return hashlib.file_digest(read, "sha256").hexdigest()
