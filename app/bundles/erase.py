"""Erasure from bundles: a bundle that has a list of the user is written again without it, under a new id.

The precomputed lists are all that a bundle has by user; whether another file names him is looked up all the same.
What is live is replaced by a promotion; the old one goes when nothing leads to it any more.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

from app.bundles.build import ITEMS, LISTS, rewrite_bundle
from app.bundles.manifest import read_manifest
from app.bundles.registry import BundleRow, Registry, bundles_folder, open_registry
from app.cache import ListStore, copy_lists_sst
from app.erasure.places import PlaceReport, Subject, cleared
from app.errors import BundleError
from app.faults import reach
from app.settings import Settings

# Makes a bundle live on surfaces, without the metric gate; returns once every replica has it.
Promote = Callable[[str, Sequence[str]], None]

_REPLACED = re.compile(r"\.e[0-9a-f]{8}$")
_LONGEST = 110
_READING = ".reading-"  # before the name of a folder in which lists are looked up
_DROPPED_S, _LOOK_S = 30.0, 0.2
_STILL_S = 60.0  # what was not written to for so long is a killed process's
_PIECE = 1 << 22
_TELLING = 16  # bytes

log = logging.getLogger(__name__)


class BundlesPlace:
    """The bundles that are registered, and what lies beside them.

    Args:
        settings, home: where they are.
        promote: how a bundle goes live where a system is up; None: none is, the aliases are moved here.
    """

    name = "bundles"

    def __init__(self, settings: Settings, home: Path, promote: Promote | None = None) -> None:
        self._settings, self._home, self._promote = settings, home, promote

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`.

        Raises:
            BundleError: the promotion of what replaces a live one failed, or a file that is no list names the user.
            RegistryUnavailable: the registry's database does not answer.
        """
        keys = [f"u:{subject.user_id}"]
        registry = open_registry(self._settings, self._home)
        replaced: dict[str, str] = {}
        try:
            live = set(registry.aliases().live.values())
            # The live ones last, the oldest first: what they lead back to, or were compared with, is replaced by then
            for row in sorted(registry.bundles(), key=lambda row: (row.id in live, row.created)):
                if self._holds(row.folder, keys):
                    replaced[row.id] = self._replace(registry, row, keys, subject, replaced)
            for row in registry.bundles():
                _look_further(row.folder, subject)
            left = self._remove_unregistered({row.folder.name for row in registry.bundles()}, keys)
            self._wait_for_replicas({row.id for row in registry.bundles()})
        finally:
            registry.close()
        detail = f"{len(replaced)} replaced by ones without his lists; every other file looked through"
        return [cleared(self.name, detail + (f"; {left} unfinished ones removed" if left else ""))]

    def _holds(self, folder: Path, keys: Sequence[str]) -> bool:
        lists = folder / LISTS
        return lists.exists() and has_lists(lists, keys, folder.parent)

    def _replace(
        self, registry: Registry, row: BundleRow, keys: Sequence[str], subject: Subject, replaced: dict[str, str]
    ) -> str:
        """Writes, registers and promotes the new one, then removes the old; killed anywhere, the next run goes on."""
        new = _new_id(row.id, subject.erasure)
        target = row.folder.parent / new
        if not target.exists():
            found = read_manifest(row.folder).comparisons
            comparisons = {replaced.get(other, other): one for other, one in found.items()}
            rewrite_bundle(row.folder, new, lambda folder: _without(folder / LISTS, keys), comparisons)
        reach("erase:bundle_written")
        if new not in {known.id for known in registry.bundles()}:
            registry.register(new, target, read_manifest(target).model_dump(mode="json"), created=row.created)
        reach("erase:bundle_registered")
        aliases = registry.aliases().aliases.values()
        before = {alias.surface: alias.previous for alias in aliases if alias.bundle == row.id}
        if before:
            self._make_live(registry, row.id, new, list(before))
        reach("erase:bundle_live")
        back = {alias.surface: new for alias in aliases if alias.previous == row.id}
        registry.remove(row.id, before | back)
        shutil.rmtree(row.folder, ignore_errors=True)
        log.info("erasure: bundle %s is replaced by %s", row.id, new)
        return new

    def _make_live(self, registry: Registry, old: str, new: str, surfaces: Sequence[str]) -> None:
        if self._promote is None:
            registry.move(new, dict.fromkeys(surfaces, old))
        else:
            self._promote(new, surfaces)
        stuck = [surface for surface in surfaces if registry.live(surface) == old]
        if stuck:
            raise BundleError(f"bundle {new}: found {old} still live on {', '.join(stuck)}, wanted it replaced")

    def _wait_for_replicas(self, registered: set[str]) -> None:
        """Each replica has a copy of the lists of the bundles that it has loaded, for as long as a request uses one."""
        deadline = time.monotonic() + _DROPPED_S
        while held := [path for path in self._home.glob("cache/*/lists/*") if path.name not in registered]:
            if time.monotonic() > deadline:
                names = ", ".join(sorted({path.name for path in held}))
                raise BundleError(f"bundles {names}: found them loaded still, wanted every replica to drop them")
            time.sleep(_LOOK_S)

    def _remove_unregistered(self, registered: set[str], keys: Sequence[str]) -> int:
        """What killed processes left beside the bundles with the user in it; how many.

        A sweep that is writing looks at the ledger once more before it registers its bundle.
        """
        removed = 0
        parent = bundles_folder(self._settings, self._home)
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            if folder.is_dir() and folder.name not in registered and self._is_left(folder, keys):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def _is_left(self, folder: Path, keys: Sequence[str]) -> bool:
        if folder.name.startswith(_READING):
            return True  # erasures run one at a time
        try:
            return self._holds(folder, keys)
        except BundleError:
            lists = folder / LISTS
            if lists.exists() and time.time() - lists.stat().st_mtime < _STILL_S:
                raise BundleError(
                    "a bundle is being written, wanted it whole or gone; the erasure goes on later"
                ) from None
            return True


def has_lists(lists: Path, keys: Sequence[str], scratch: Path) -> bool:
    """Whether an SST file of lists has one of these keys; `scratch`: a folder to work in.

    Raises:
        BundleError: it is no such file.
    """
    store = ListStore(scratch / f"{_READING}{lists.parent.name}", lists)
    try:
        return any(store.rows(key) is not None for key in keys)
    finally:
        store.close()


def _without(lists: Path, keys: Sequence[str]) -> None:
    fresh = lists.with_name("fresh.sst")
    copy_lists_sst(lists, fresh, keys)
    lists.unlink()
    if fresh.exists():
        fresh.rename(lists)


def _look_further(folder: Path, subject: Subject) -> None:
    """Looks for the ids in the bytes of every file but the lists, and the items, which say what the catalogue says.

    A short id may be anything, a number or the name of a surface: only longer ones tell.
    """
    telling = [name.encode() for name in (subject.user_id, *subject.sessions) if len(name.encode()) >= _TELLING]
    for path in sorted(folder.rglob("*")) if telling else ():
        if path.is_file() and path.name not in (LISTS, ITEMS) and _has(path, telling):
            raise BundleError(f"bundle {folder.name}: found the user in {path.name}, wanted no file but lists by user")


def _has(path: Path, wanted: Sequence[bytes]) -> bool:
    longest, tail = max(map(len, wanted)), b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            if any(one in tail + piece for one in wanted):
                return True
            tail = piece[-longest:]
    return False


def _new_id(bundle: str, erasure: str) -> str:
    """The same for the same bundle and erasure, so that a killed run finds what it wrote."""
    mark = blake2b(f"{erasure}/{bundle}".encode(), digest_size=4).hexdigest()
    return f"{_REPLACED.sub('', bundle)[:_LONGEST]}.e{mark}"
