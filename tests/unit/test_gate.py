"""The gate: comparable figures only, hashes and smoke always, refusals on record."""

from pathlib import Path
from typing import Any

import pytest

from app.bundles.gate import admit, admit_rollback, examine
from app.bundles.manifest import Comparison
from app.bundles.quality import check
from app.bundles.registry import Registry
from app.errors import BundleError, Conflict, GateRefused, NotFound
from app.settings import LearnSettings, Settings

LEARN = LearnSettings()
SETTINGS = Settings.model_validate({"surfaces": {"home": {}, "related": {}}})


def manifest(bundle: str, value: float | None, split: str = "s1", **more: float) -> dict[str, Any]:
    metrics = more if value is None else {"ndcg_at_10": value, **more}
    return {"id": bundle, "metrics": metrics, "validation": {"snapshot": split}, "surfaces": ["home", "related"]}


def fine() -> None:
    """Nothing is wrong."""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    for found in (manifest("old", 0.10), manifest("better", 0.12), manifest("worse", 0.08)):
        made.register(found["id"], tmp_path / found["id"], found)
    made.move("old", {"home": None, "related": None})
    return made


@pytest.mark.parametrize(
    ("own", "theirs", "tolerance", "passed"),
    [(0.12, 0.10, 0.0, True), (0.10, 0.10, 0.0, True), (0.099, 0.10, 0.0, False), (0.099, 0.10, 0.002, True)],
)
def test_same_split_compares_recorded_metrics(own: float, theirs: float, tolerance: float, passed: bool) -> None:
    learn = LearnSettings(gate_tolerance=tolerance)
    result = check(manifest("new", own), manifest("old", theirs), learn)
    assert result.passed is passed
    assert result.figures["candidate"] == own
    assert result.figures["champion"] == theirs
    assert "ndcg_at_10" in result.reason


def test_the_first_bundle_passes_but_never_one_without_a_figure() -> None:
    assert check(manifest("new", 0.0), None, LEARN).passed
    assert not check(manifest("new", None), None, LEARN).passed
    assert not check(manifest("new", float("nan")), None, LEARN).passed


def test_another_split_is_refused_unless_a_comparison_was_recorded() -> None:
    old = manifest("old", 0.9, split="s0")
    refused = check(manifest("new", 0.1), old, LEARN)
    assert not refused.passed
    assert refused.reason.startswith("quality: found the live bundle old validated on another split")
    recorded = Comparison(metric="ndcg_at_10", basis="fresh", cases=200, theirs=0.2, ours=0.15).model_dump()
    result = check(manifest("new", 0.3) | {"comparisons": {"old": recorded}}, old, LEARN)
    assert not result.passed
    assert (result.figures["champion"], result.figures["candidate"]) == (0.2, 0.15)
    of_another_metric = recorded | {"metric": "recall_at_20"}
    assert check(manifest("new", 0.3) | {"comparisons": {"old": of_another_metric}}, old, LEARN).figures["basis"] == (
        "different validation splits"
    )


def test_a_better_bundle_is_admitted_with_what_must_still_be_live(registry: Registry) -> None:
    admission = admit(registry, SETTINGS, "better", verify=fine, smoke=fine, total=2)
    assert admission.promotion.state == "loading"
    assert admission.promotion.total == 2
    assert admission.expected == {"home": "old", "related": "old"}
    registry.move("better", admission.expected)
    again = admit(registry, SETTINGS, "better", expected="old", verify=fine)
    assert again.promotion.state == "live"


def test_a_worse_bundle_is_refused_on_record_unless_forced(registry: Registry) -> None:
    with pytest.raises(GateRefused, match="worse than what is live") as caught:
        admit(registry, SETTINGS, "worse", ["home"], verify=fine)
    kept = registry.promotion(str(caught.value.figures["promotion"]))
    assert (kept.state, kept.figures["champion"]) == ("refused", 0.10)
    assert admit(registry, SETTINGS, "worse", ["home"], verify=fine, force=True).promotion.force


def test_force_skips_neither_hashes_nor_smoke_nor_expectation(registry: Registry) -> None:
    def broken() -> None:
        raise BundleError("hash of index.faiss differs")

    with pytest.raises(GateRefused, match="hashes: hash of index"):
        admit(registry, SETTINGS, "better", verify=broken, force=True)
    with pytest.raises(GateRefused, match="smoke request: hash of index"):
        admit(registry, SETTINGS, "better", verify=fine, smoke=broken, force=True)
    with pytest.raises(GateRefused, match="expected other to be live, found home: old, related: old"):
        admit(registry, SETTINGS, "better", verify=fine, expected="other", force=True)
    assert len(registry.promotions(state="refused")) == 3


def test_the_slow_looks_come_last_and_may_be_left_to_the_caller(registry: Registry) -> None:
    def never() -> None:
        raise AssertionError("looked at a bundle that the gate refuses")

    with pytest.raises(GateRefused, match="worse than what is live"):
        admit(registry, SETTINGS, "worse", verify=never, smoke=never)
    begun = admit(registry, SETTINGS, "better")
    assert begun.promotion.figures["before"] == begun.expected == {"home": "old", "related": "old"}
    assert examine(fine, never).figures == {"failed": "smoke request"}
    assert admit(registry, SETTINGS, "better", joins=True).promotion.id == begun.promotion.id
    assert admit(registry, SETTINGS, "better", joins=True, force=True).promotion.id != begun.promotion.id
    assert admit(registry, SETTINGS, "better").promotion.id != begun.promotion.id


def test_unknown_names_are_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'nope'"):
        admit(registry, SETTINGS, "nope", verify=fine)
    with pytest.raises(NotFound, match=r"'e-mail'.*home, related"):
        admit(registry, SETTINGS, "better", ["e-mail"], verify=fine)
    registry.register("narrow", tmp_path, manifest("narrow", 0.5) | {"surfaces": ["related"]})
    with pytest.raises(Conflict, match="built for related, not for surface 'home'"):
        admit(registry, SETTINGS, "narrow", ["home"], verify=fine)
    assert admit(registry, SETTINGS, "narrow", verify=fine).expected == {"related": "old"}


def test_rollback_needs_no_gate_but_sound_files(registry: Registry) -> None:
    registry.move("better", {"home": "old"})
    admission = admit_rollback(registry, "home", verify=lambda _: None)
    assert (admission.promotion.kind, admission.promotion.bundle) == ("rollback", "old")
    assert admission.expected == {"home": "better"}

    def damaged(bundle: str) -> None:
        raise BundleError(f"{bundle} is damaged")

    with pytest.raises(GateRefused, match="old is damaged"):
        admit_rollback(registry, "home", verify=damaged)
    with pytest.raises(NotFound):
        admit_rollback(registry, "related", verify=lambda _: None)
