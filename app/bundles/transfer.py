"""Bundles from one system to another, through a folder or an artifact store; verified on leaving and on arrival."""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.artifacts import Place, StoreError, below, shown
from app.bundles.manifest import MANIFEST, Manifest, read_manifest, verify
from app.bundles.whole import COMING, appear
from app.errors import BundleError, Conflict, MantaError


@dataclass(frozen=True, slots=True)
class Transferred:
    """A bundle that was copied. `place`: where it lies now."""

    bundle: str
    place: str
    files: int
    bytes: int


def export_bundle(folder: Path, address: str) -> Transferred:
    """Copies a bundle to `ADDRESS/ID/`; the manifest comes last, so that half a copy is no bundle.

    Raises:
        BundleError: the bundle is damaged.
        Conflict: a bundle of this id is there already.
        MantaError: the place cannot be written.
    """
    manifest = verify(folder)
    try:
        place = Place.of(address) / manifest.id
        if place.has(MANIFEST):
            raise Conflict(f"{shown(address)}: found a bundle {manifest.id}, wanted none: bundles never change")
        size = sum(place.put(name, folder / name) for name in sorted(manifest.files))
        size += place.put(MANIFEST, folder / MANIFEST)
    except StoreError as error:
        raise MantaError(f"{shown(address)}: found {error}, wanted a place that can be written") from None
    return Transferred(manifest.id, below(address, manifest.id), len(manifest.files) + 1, size)


def import_bundle(
    address: str, parent: Path, known: Callable[[str], bool] = lambda _: True
) -> tuple[Transferred, Manifest]:
    """Copies the bundle at `ADDRESS` (its own folder) into `PARENT/ID/` and verifies it there; the caller registers it.

    Args:
        known: whether a bundle of an id is registered; a folder of one that is not was left by a killed import.

    Raises:
        BundleError: no bundle is there, or it is damaged; nothing is left behind.
        Conflict: the parent holds a bundle of this id.
    """
    place = Place.of(address)
    fresh = parent / f"{COMING}{secrets.token_hex(4)}"
    try:
        place.get(MANIFEST, fresh / MANIFEST)
        manifest = read_manifest(fresh)
        target = parent / manifest.id
        if target.exists():
            if known(manifest.id) or (target / MANIFEST).read_bytes() != (fresh / MANIFEST).read_bytes():
                raise Conflict(f"{target}: found a bundle of this id, wanted none: bundles never change")
            verify(target)
            return _arrived(target, manifest), manifest
        for name in manifest.files:
            place.get(name, fresh / name)
        verify(fresh)
        appear(fresh, target)
    except StoreError as error:
        raise BundleError(f"{shown(address)}: found {error}, wanted a bundle's folder") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return _arrived(target, manifest), manifest


def _arrived(target: Path, manifest: Manifest) -> Transferred:
    size = sum((target / name).stat().st_size for name in (*manifest.files, MANIFEST))
    return Transferred(manifest.id, str(target), len(manifest.files) + 1, size)
