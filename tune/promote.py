"""Promotion where no system is up: gate and alias, in one process. With a system up its HTTP door is the way."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from app.bundles.gate import Admission, admit, admit_rollback
from app.bundles.manifest import verify
from app.bundles.registry import Promotion, Registry, open_registry
from app.errors import Conflict
from app.settings import Settings
from app.smoke import smoke_apart


def promote(
    settings: Settings,
    home: Path,
    bundle: str,
    surfaces: Sequence[str] | None = None,
    *,
    force: bool = False,
    expected: str | None = None,
) -> Promotion:
    """Makes a registered bundle live on surfaces (default: all it was built for); whoever starts later reads it.

    Args:
        force: skips the gates that compare figures, never hashes and smoke.
        expected: the bundle that must be live now.

    Raises:
        NotFound: unknown bundle or surface.
        GateRefused: refused, and kept as a promotion with that state.
        Conflict: somebody else moved an alias meanwhile.
    """
    registry = open_registry(settings, home)
    try:
        row = registry.bundle(bundle)
        admission = admit(
            registry,
            settings,
            bundle,
            surfaces,
            force=force,
            expected=expected,
            verify=lambda: verify(row.folder, row.files),
            smoke=lambda: smoke_apart(row.folder),
        )
        return _moved(registry, admission)
    finally:
        registry.close()


def rollback(settings: Settings, home: Path, surface: str) -> Promotion:
    """Makes the bundle live again that was live before on the surface.

    Raises:
        NotFound: none was.
        GateRefused: its files are damaged.
    """
    registry = open_registry(settings, home)
    try:
        return _moved(registry, admit_rollback(registry, surface, verify=partial(_verify, registry)))
    finally:
        registry.close()


def _verify(registry: Registry, bundle: str) -> None:
    row = registry.bundle(bundle)
    verify(row.folder, row.files)


def _moved(registry: Registry, admission: Admission) -> Promotion:
    promotion = admission.promotion
    if promotion.state == "live":
        return promotion
    try:
        registry.move(promotion.bundle, admission.expected)
    except Conflict as error:
        registry.update_promotion(promotion.id, state="failed", reason=str(error))
        raise
    return registry.update_promotion(promotion.id, state="live")
