"""The promotion gate: may this bundle go live, and if not, which gate refuses, what was found and what was wanted?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.bundles.judged import paired_files
from app.bundles.quality import FAILED, GateResult, Json, check, refusal, within_budget
from app.bundles.registry import BundleRow, Kind, Promotion, Registry
from app.errors import BundleError, Conflict, GateRefused, NotFound
from app.settings import Settings

# A promotion's figures also keep what was live before and that its files were found sound, so that one that was
# interrupted goes on as it was admitted.
BEFORE = "before"
SOUND = "sound"
LATENCY = "latency_ms"  # CPU time of a lone request, as the smoke request found it

# Looks at a bundle; raises BundleError (hashes) or any MantaError (smoke request) where something is wrong.
Check = Callable[[], object]
# Of what the smoke request told: the median of a lone request in milliseconds, where it is a number.
Judge = Callable[[float], GateResult]


@dataclass(frozen=True, slots=True)
class Admission:
    """A promotion that may go on: `examine` its files unless `admit` did, load it, then move the aliases.

    Attributes:
        expected: surface to what was live when the gate looked, which must still be so at the move.
    """

    promotion: Promotion
    expected: dict[str, str | None]


def admit(
    registry: Registry,
    settings: Settings,
    bundle: str,
    surfaces: Sequence[str] | None = None,
    *,
    force: bool = False,
    expected: str | None = None,
    verify: Check | None = None,
    smoke: Check | None = None,
    joins: bool = False,
    total: int = 0,
) -> Admission:
    """Everything before loading: what is live is what was expected, quality, segments, size, hashes, a smoke request
    and the latency that it finds.

    Args:
        surfaces: default: every configured surface that the bundle was built for.
        force: skips the gates that compare figures (quality, segments, size, latency), and nothing else.
        expected: the bundle that must be live on each surface now.
        verify, smoke: the looks at its files; the latter returns its latency. None: the caller looks (`examine`) once
            the promotion is begun.
        joins: one of the same bundle to the same surfaces that is under way is what is returned, not another.
        total: replicas that will have to load the bundle.

    Returns:
        The admission; its promotion is `live` at once where the bundle is live on every surface already.

    Raises:
        NotFound: unknown bundle or surface.
        Conflict: the bundle was not built for a surface.
        GateRefused: refused, which is also kept as a promotion (its id is in the figures).
    """
    row = registry.bundle(bundle)
    targets = _targets(settings, row.manifest, bundle, surfaces)
    live = registry.aliases().live
    present = {surface: live.get(surface) for surface in targets}
    begun = _under_way(registry, "promote", targets, bundle, force) if joins else None
    if begun is not None and _expected(begun.figures[BEFORE], expected).passed:
        return Admission(begun, begun.figures[BEFORE])
    if all(found == bundle for found in present.values()):
        return Admission(registry.start_promotion(bundle, targets, force=force, state="live", total=total), present)
    result = _expected(present, expected)
    if result.passed and not force:
        champions = sorted({found for found in present.values() if found is not None and found != bundle})
        result = _compare(registry, settings, row, champions)
        if result.passed and not (fits := within_budget(settings, targets, size=_bytes(row.manifest))).passed:
            result = GateResult(False, fits.reason, result.figures | fits.figures)
    figures = result.figures
    if result.passed:
        sound = examine(verify, smoke, None if force else latency_judge(settings, targets))
        figures = figures | sound.figures
        result = result if sound.passed else sound
    if not result.passed:
        refused = registry.start_promotion(
            bundle, targets, force=force, state="refused", reason=result.reason, figures=figures, total=total
        )
        raise GateRefused(f"bundle {bundle} is refused: {result.reason}", figures | {"promotion": refused.id})
    figures |= {BEFORE: present}
    started = registry.start_promotion(bundle, targets, force=force, reason=result.reason, figures=figures, total=total)
    return Admission(started, present)


def admit_rollback(
    registry: Registry,
    surface: str,
    *,
    verify: Callable[[str], object] | None = None,
    joins: bool = False,
    total: int = 0,
    because: str | None = None,
) -> Admission:
    """The way back to the bundle that was live on the surface before: hashes, no metric gate.

    Args:
        verify: checks the hashes of the bundle of this id. None: the caller does (`examine`).
        joins: a rollback of the surface that is under way is what is returned, not one further back.
        because: why, for the record.

    Raises:
        NotFound: nothing was live before.
        GateRefused: that bundle is damaged.
    """
    begun = _under_way(registry, "rollback", [surface]) if joins else None
    if begun is not None:
        return Admission(begun, begun.figures[BEFORE])
    bundle = registry.rollback_target(surface)
    present = {surface: registry.live(surface)}
    result = examine(None if verify is None else lambda: verify(bundle))
    if not result.passed:
        refused = registry.start_promotion(
            bundle, [surface], kind="rollback", state="refused", reason=result.reason, total=total
        )
        raise GateRefused(f"bundle {bundle} is refused: {result.reason}", {"promotion": refused.id})
    figures = {BEFORE: present}
    started = registry.start_promotion(bundle, [surface], kind="rollback", reason=because, figures=figures, total=total)
    return Admission(started, present)


def examine(verify: Check | None, smoke: Check | None = None, judge: Judge | None = None) -> GateResult:
    """The slow half: hashes, then a smoke request, then how long it took. What raises refuses."""
    figures: dict[str, Any] = {}
    for what, look in (("hashes", verify), ("smoke request", smoke)):
        if look is None:
            continue
        try:
            told = look()
        except (BundleError, Conflict, NotFound) as error:
            return refusal(what, str(error))
        except Exception as error:  # nothing unsound goes live, whatever it raises
            return refusal(what, f"{type(error).__name__}: {error}")
        if isinstance(told, float):
            figures[LATENCY] = told
            if judge is not None and not (result := judge(told)).passed:
                return GateResult(False, result.reason, figures | result.figures)
    return GateResult(True, "", figures)


def latency_judge(settings: Settings, surfaces: Sequence[str]) -> Judge:
    """Against the surfaces' budgets."""
    return lambda found: within_budget(settings, surfaces, latency_ms=found)


def _under_way(
    registry: Registry, kind: Kind, surfaces: Sequence[str], bundle: str | None = None, force: bool = False
) -> Promotion | None:
    wanted = (kind, set(surfaces), force)
    for found in registry.promotions(1000, "loading"):
        same = (found.kind, set(found.surfaces), found.force) == wanted and bundle in (None, found.bundle)
        if same and BEFORE in found.figures:
            return found
    return None


def _targets(settings: Settings, manifest: Json, bundle: str, surfaces: Sequence[str] | None) -> list[str]:
    built_for = list(manifest.get("surfaces") or settings.surfaces)
    wanted = list(surfaces) if surfaces else [name for name in settings.surfaces if name in built_for]
    for name in wanted:
        if name not in settings.surfaces:
            raise NotFound(f"surface {name!r}: wanted one of {', '.join(settings.surfaces)}")
        if name not in built_for:
            raise Conflict(f"bundle {bundle} was built for {', '.join(built_for)}, not for surface {name!r}")
    if not wanted:
        raise Conflict(f"bundle {bundle} was built for {', '.join(built_for)}: none of them is configured here")
    return wanted


def _expected(present: Mapping[str, str | None], expected: str | None) -> GateResult:
    if expected is None:
        return GateResult(True, "")
    wrong = {surface: found for surface, found in present.items() if found != expected}
    if not wrong:
        return GateResult(True, "")
    found = ", ".join(f"{name}: {bundle or 'nothing'}" for name, bundle in wrong.items())
    figures = {"expected": expected, "found": wrong, FAILED: "expected"}
    return GateResult(False, f"expected {expected} to be live, found {found}", figures)


def _compare(registry: Registry, settings: Settings, row: BundleRow, champions: Sequence[str]) -> GateResult:
    """The gate against every bundle that is live on one of the surfaces: the first refusal, else the last result."""
    result = check(row.manifest, None, settings.learn)
    ours, metric = (row.folder, row.manifest), settings.learn.metric
    for name in champions:
        if not result.passed:
            return result
        live = registry.bundle(name)
        pair = partial(paired_files, ours, (live.folder, live.manifest), metric)
        result = check(row.manifest, live.manifest, settings.learn, settings.promotion, pair=pair)
    return result


def _bytes(manifest: Json) -> int | None:
    found = (manifest.get("sizes") or {}).get("bytes")
    return found if isinstance(found, int) else None
