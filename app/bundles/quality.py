"""The gates that compare figures: quality and segments against a live bundle, latency and size against budgets.

A manifest is read here as JSON, as the registry keeps it. Its `metrics` are flat: `ndcg_at_10` is the whole chain's,
`FAMILY.ndcg_at_10` a family's alone. Each refusal names its gate, what was found and what was wanted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app.bundles.manifest import Comparison
from app.settings import LearnSettings, PromotionSettings, Settings

Json = Mapping[str, Any]
# Both bundles by the values by case in their files; None: not comparable so.
Pair = Callable[[], Comparison | None]

FAILED = "failed"  # in figures: the gate that refused


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether a bundle may go live; `figures` are JSON and say by which numbers."""

    passed: bool
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)


def refusal(gate: str, reason: str, figures: Json | None = None) -> GateResult:
    """A refusal that names its gate."""
    return GateResult(False, f"{gate}: {reason}", {**(figures or {}), FAILED: gate})


def check(
    candidate: Json,
    champion: Json | None,
    learn: LearnSettings,
    promotion: PromotionSettings | None = None,
    *,
    pair: Pair | None = None,
) -> GateResult:
    """Compares a bundle with the live one by `learn.metric` on one and the same set of cases.

    What was recorded when the candidate was built comes first (the live bundle asked for events that neither has
    learned from), then values by case of the same validation, then figures of the same validation split, which have no
    interval: then the mean must be no lower.

    Args:
        champion: the live bundle's manifest, None: nothing is live, so that any measured bundle passes.
    """
    metric, promotion = learn.metric, promotion or PromotionSettings()
    own = _figure(candidate, metric)
    figures: dict[str, Any] = {"metric": metric, "candidate": own, "tolerance": learn.gate_tolerance}
    if own is None:
        return refusal("quality", f"found no {metric} of its chain in the manifest, wanted one", figures)
    if champion is None:
        return GateResult(True, "nothing is live yet", figures)
    figures["champion_bundle"] = name = str(champion.get("id"))
    found = _comparable(candidate, champion, metric, own, pair)
    if found is None:
        figures |= {"champion": None, "basis": "different validation splits"}
        reason = (
            f"found the live bundle {name} validated on another split and no comparison recorded, wanted both on the "
            "same cases; sweep again, or force"
        )
        return refusal("quality", reason, figures)
    figures |= {"champion": found.theirs, "candidate": found.ours, "basis": found.basis, "cases": found.cases}
    if found.low is not None and found.high is not None:
        figures["interval"] = [found.low, found.high]
    quality = _quality(found, name, learn.gate_tolerance, promotion)
    if not quality.passed:
        return GateResult(False, quality.reason, figures | quality.figures)
    segments = _segments(found, name, learn.gate_tolerance, promotion)
    return GateResult(segments.passed, segments.reason or quality.reason, figures | segments.figures)


def _quality(found: Comparison, name: str, tolerance: float, promotion: PromotionSettings) -> GateResult:
    between = "" if found.low is None else f", 95 % interval of the difference {found.low:+.4f} to {found.high:+.4f}"
    said = (
        f"{found.metric} {found.ours:.4f} against {found.theirs:.4f} of the live bundle {name} ({found.basis}{between})"
    )
    if found.low is None or found.high is None:
        if promotion.required == "better":
            return refusal("quality", f"found no interval ({said}), wanted one above zero (promotion.required: better)")
        if found.ours + tolerance < found.theirs:
            return refusal("quality", f"worse than what is live: found {said}, wanted no less")
        return GateResult(True, said)
    if promotion.required == "better" and found.low <= 0:
        return refusal("quality", f"not surely better than what is live: found {said}, wanted an interval above zero")
    if found.high + tolerance < 0:
        return refusal("quality", f"worse than what is live: found {said}, wanted an interval that reaches zero")
    if found.theirs - found.ours > tolerance + promotion.most_loss * found.theirs:
        return refusal(
            "quality", f"worse than what is live: found {said}, wanted at most {promotion.most_loss:.0%} less"
        )
    return GateResult(True, said)


def _segments(found: Comparison, name: str, tolerance: float, promotion: PromotionSettings) -> GateResult:
    """The worst segment that is surely worse by more than is allowed refuses."""
    worst, most = None, 0.0
    for segment, one in found.segments.items():
        if one.cases < promotion.segment_cases or one.high is None or one.high >= 0:
            continue
        loss = one.theirs - one.ours
        beyond = loss - tolerance - promotion.segment_loss * one.theirs
        if beyond > 0 and loss > most:
            worst, most = segment, loss
    if worst is None:
        return GateResult(True, "")
    one = found.segments[worst]
    reason = (
        f"{worst}: found {found.metric} {one.ours:.4f} against {one.theirs:.4f} of the live bundle {name} in "
        f"{one.cases} cases, wanted at most {promotion.segment_loss:.0%} less"
    )
    return refusal("segments", reason, {"segment": worst, "of_segment": one.model_dump()})


def _comparable(candidate: Json, champion: Json, metric: str, own: float, pair: Pair | None) -> Comparison | None:
    recorded = (candidate.get("comparisons") or {}).get(champion.get("id"))
    try:
        if recorded and (found := Comparison.model_validate(recorded)).metric == metric:
            return found
    except ValidationError:
        pass  # by a later version
    if pair is not None and (found_now := pair()) is not None:
        return found_now
    split, theirs = candidate.get("validation"), _figure(champion, metric)
    if split is None or split != champion.get("validation") or theirs is None:
        return None
    return Comparison(
        cases=int(split.get("cases") or 0), theirs=theirs, ours=own, metric=metric, basis="same validation split"
    )


def within_budget(
    settings: Settings, surfaces: Sequence[str], *, size: int | None = None, latency_ms: float | None = None
) -> GateResult:
    """Size (bytes) and latency (CPU time of a lone request) against what each surface allows; None: not judged now."""
    for name in surfaces:
        surface = settings.surfaces[name]
        if size is not None and surface.bundle_bytes is not None and size > surface.bundle_bytes:
            reason = f"found {size} bytes, wanted at most {surface.bundle_bytes} (surfaces.{name}.bundle_bytes)"
            return refusal("size", reason, {"bytes": size, "wanted": surface.bundle_bytes})
        most_ms = surface.bundle_ms or surface.timeout_ms
        if latency_ms is not None and latency_ms > most_ms:
            key = "timeout_ms" if surface.bundle_ms is None else "bundle_ms"
            reason = f"found {latency_ms:.1f} ms of CPU for a lone request, wanted at most {most_ms:g}"
            return refusal("latency", f"{reason} (surfaces.{name}.{key})", {"ms": latency_ms, "wanted": most_ms})
    return GateResult(True, "")


def _figure(manifest: Json, key: str) -> float | None:
    value = (manifest.get("metrics") or {}).get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
