"""The promotion gate: may this bundle go live, and if not, by which figures?

A manifest is read here as JSON, as the registry keeps it. Its `metrics` are flat: `ndcg_at_10` is the whole chain's,
`FAMILY.ndcg_at_10` a family's alone, `versus.ID.…` a comparison with an older bundle; `validation` names the cases.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.bundles.registry import Kind, Promotion, Registry
from app.errors import BundleError, Conflict, GateRefused, NotFound
from app.settings import LearnSettings, Settings

# A promotion's figures also keep what was live before and that its files were found sound, so that one that was
# interrupted goes on as it was admitted.
BEFORE = "before"
SOUND = "sound"

Json = Mapping[str, Any]
# Metrics of an older bundle on the validation cases of a newer one: (the older manifest, the newer) -> figures.
Reevaluate = Callable[[Json, Json], Mapping[str, float]]
# Looks at a bundle; raises BundleError (hashes) or any MantaError (smoke request) where something is wrong.
Check = Callable[[], object]


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether a bundle may go live; `figures` are JSON and say by which numbers."""

    passed: bool
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Admission:
    """A promotion that may go on: `examine` its files unless `admit` did, load it, then move the aliases.

    Attributes:
        expected: surface to what was live when the gate looked, which must still be so at the move.
    """

    promotion: Promotion
    expected: dict[str, str | None]


def versus(bundle: str, metric: str) -> tuple[str, str]:
    """The keys in `metrics` of a comparison with `bundle`, recorded at building: its figure, ours on the same cases."""
    return f"versus.{bundle}.{metric}", f"versus.{bundle}.chain.{metric}"


def check(
    candidate: Json, champion: Json | None, learn: LearnSettings, *, reevaluate: Reevaluate | None = None
) -> GateResult:
    """Compares a bundle with the live one by `learn.metric` on one and the same set of cases.

    The same validation split: the recorded figures. Another split: the comparison that the sweep recorded when it
    built the candidate, else the champion measured again on the candidate's cases by `reevaluate`, else refused.

    Args:
        champion: the live bundle's manifest, None: nothing is live, so that any measured bundle passes.
    """
    metric = learn.metric
    own = _figure(candidate, metric)
    figures: dict[str, Any] = {"metric": metric, "candidate": own, "tolerance": learn.gate_tolerance}
    if own is None:
        return GateResult(False, f"the bundle's manifest has no {metric} of its chain", figures)
    if champion is None:
        return GateResult(True, "nothing is live yet", figures)
    figures["champion_bundle"] = champion.get("id")
    theirs, own, basis = _comparable(candidate, champion, metric, own, reevaluate)
    figures |= {"candidate": own, "champion": theirs, "basis": basis}
    if theirs is None or own is None:
        reason = (
            f"the live bundle {champion.get('id')} was validated on another split and no comparison is recorded; "
            "sweep again, or force"
        )
        return GateResult(False, reason, figures)
    said = f"{metric} {own:.4f} against {theirs:.4f} of the live bundle {champion.get('id')} ({basis})"
    if own + learn.gate_tolerance < theirs:
        return GateResult(False, f"worse than what is live: {said}", figures)
    return GateResult(True, said, figures)


def _comparable(
    candidate: Json, champion: Json, metric: str, own: float, reevaluate: Reevaluate | None
) -> tuple[float | None, float | None, str]:
    """(champion's figure, candidate's figure, on what both were measured)."""
    split = candidate.get("validation")
    if split is not None and split == champion.get("validation"):
        return _figure(champion, metric), own, "same validation split"
    their_key, own_key = versus(str(champion.get("id")), metric)
    if (theirs := _figure(candidate, their_key)) is not None:
        return theirs, _figure(candidate, own_key), "compared when the bundle was built"
    if reevaluate is not None:
        found = reevaluate(champion, candidate).get(metric)
        return (None if found is None else float(found)), own, "live bundle measured again"
    return None, own, "different validation splits"


def _figure(manifest: Json, key: str) -> float | None:
    value = (manifest.get("metrics") or {}).get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


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
    reevaluate: Reevaluate | None = None,
    joins: bool = False,
    total: int = 0,
) -> Admission:
    """Everything before loading: what is live is what was expected, the metric gate, hashes, a smoke request.

    Args:
        surfaces: default: every configured surface that the bundle was built for.
        force: skips the metric gate, and nothing else.
        expected: the bundle that must be live on each surface now.
        verify, smoke: the looks at its files. None: the caller looks (`examine`) once the promotion is begun.
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
        result = _compare(registry, settings, row.manifest, champions, reevaluate)
    figures = result.figures
    if result.passed and not (sound := examine(verify, smoke)).passed:
        result, figures = sound, figures | sound.figures
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
) -> Admission:
    """The way back to the bundle that was live on the surface before: hashes, no metric gate.

    Args:
        verify: checks the hashes of the bundle of this id. None: the caller does (`examine`).
        joins: a rollback of the surface that is under way is what is returned, not one further back.

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
    started = registry.start_promotion(bundle, [surface], kind="rollback", figures=figures, total=total)
    return Admission(started, present)


def examine(verify: Check | None, smoke: Check | None = None) -> GateResult:
    """The slow half: hashes, then a smoke request. What raises refuses; the figures say which of them."""
    for what, look in (("hashes", verify), ("smoke request", smoke)):
        if look is not None and not (result := _sound(look, what)).passed:
            return result
    return GateResult(True, "")


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
    return GateResult(False, f"expected {expected} to be live, found {found}", {"expected": expected, "found": wrong})


def _sound(look: Check, what: str) -> GateResult:
    """Refuses with the reason of whatever the look at the bundle raises: nothing unsound goes live."""
    try:
        look()
    except (BundleError, Conflict, NotFound) as error:
        return GateResult(False, f"{what}: {error}", {"failed": what})
    except Exception as error:
        return GateResult(False, f"{what}: {type(error).__name__}: {error}", {"failed": what})
    return GateResult(True, "")


def _compare(
    registry: Registry, settings: Settings, candidate: Json, champions: Sequence[str], reevaluate: Reevaluate | None
) -> GateResult:
    """The gate against every bundle that is live on one of the surfaces: the first refusal, else the last result."""
    result = check(candidate, None, settings.learn)
    for champion in champions:
        if not result.passed:
            return result
        result = check(candidate, registry.bundle(champion).manifest, settings.learn, reevaluate=reevaluate)
    return result
