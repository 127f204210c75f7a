"""The gates that compare figures: by the interval of the paired difference, by segment, by budget; each says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.bundles.gate import admit, examine, latency_judge
from app.bundles.judged import JUDGED, Judged, paired, paired_files
from app.bundles.manifest import Comparison, Paired
from app.bundles.quality import check, within_budget
from app.bundles.registry import Registry
from app.errors import BundleError, GateRefused
from app.settings import LearnSettings, PromotionSettings, Settings

LEARN = LearnSettings()


def against(ours: float, theirs: float, low: float | None, high: float | None, **segments: Paired) -> dict[str, Any]:
    """A candidate with a recorded comparison with `old`."""
    found = Comparison(
        metric="ndcg_at_10", basis="fresh", cases=500, theirs=theirs, ours=ours, low=low, high=high, segments=segments
    )
    return {"id": "new", "metrics": {"ndcg_at_10": ours}, "comparisons": {"old": found.model_dump(mode="json")}}


OLD = {"id": "old", "metrics": {"ndcg_at_10": 0.2}}


@pytest.mark.parametrize(
    ("figures", "required", "passed", "says"),
    [
        ((0.21, 0.20, 0.002, 0.018), "not_worse", True, "0.2100 against 0.2000"),
        ((0.199, 0.20, -0.005, 0.003), "not_worse", True, "-0.0050 to +0.0030"),
        ((0.19, 0.20, -0.015, -0.004), "not_worse", False, "wanted an interval that reaches zero"),
        ((0.17, 0.20, -0.07, 0.01), "not_worse", False, "wanted at most 5% less"),  # few cases prove nothing
        ((0.205, 0.20, -0.001, 0.01), "better", False, "not surely better than what is live"),
        ((0.21, 0.20, 0.002, 0.018), "better", True, ""),
        ((0.21, 0.20, None, None), "better", False, "found no interval"),
        ((0.199, 0.20, None, None), "not_worse", False, "wanted no less"),
    ],
)
def test_better_within_the_interval(figures: Any, required: Any, passed: bool, says: str) -> None:
    result = check(against(*figures), OLD, LEARN, PromotionSettings(required=required))
    assert result.passed is passed, result.reason
    assert says in result.reason
    if not passed:
        assert (result.figures["failed"], result.reason.split(":")[0]) == ("quality", "quality")


def test_a_segment_that_is_surely_much_worse_refuses() -> None:
    new = Paired(cases=150, theirs=0.30, ours=0.20, low=-0.15, high=-0.05)
    candidate = against(0.21, 0.20, 0.002, 0.018, **{"history=0": new})
    result = check(candidate, OLD, LEARN)
    assert not result.passed
    assert result.reason == (
        "segments: history=0: found ndcg_at_10 0.2000 against 0.3000 of the live bundle old in 150 cases, "
        "wanted at most 10% less"
    )
    assert (result.figures["failed"], result.figures["segment"]) == ("segments", "history=0")
    assert check(candidate, OLD, LEARN, PromotionSettings(segment_loss=0.4)).passed
    assert check(candidate, OLD, LEARN, PromotionSettings(segment_cases=151)).passed
    noisy = new.model_copy(update={"high": 0.01})
    assert check(against(0.21, 0.20, 0.002, 0.018, **{"history=0": noisy}), OLD, LEARN).passed


def judged(seed: int, lift: float = 0.0) -> Judged:
    """200 cases of 40 users, whose figures go together by user."""
    random = np.random.default_rng(5)
    users = np.repeat(np.arange(40), 5).astype(np.int32)
    values = 0.2 + 0.1 * random.random(40)[users] + lift + 0.01 * np.random.default_rng(seed).random(200)
    return Judged(users, {"ndcg_at_10": values}, {"history=0": np.arange(0, 200, 2, dtype=np.int32)})


def test_two_bundles_of_the_same_cases_are_paired_by_their_files(tmp_path: Path) -> None:
    same = {"data_hash": "d", "validation": {"snapshot": "s", "cases": 200}}
    for name, one in (("a", judged(1)), ("b", judged(2, 0.05))):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name / JUDGED)
    found = paired_files((tmp_path / "b", same), (tmp_path / "a", same), "ndcg_at_10")
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 0.045 < found.low < found.ours - found.theirs < found.high < 0.055
    assert found.segments["history=0"].cases == 100
    memory = paired(judged(2, 0.05), judged(1).values, "ndcg_at_10", found.basis)
    assert memory.low == pytest.approx(found.low, abs=1e-6)
    other = same | {"data_hash": "e"}
    assert paired_files((tmp_path / "b", other), (tmp_path / "a", same), "ndcg_at_10") is None
    assert paired_files((tmp_path / "b", same), (tmp_path / "c", same), "ndcg_at_10") is None
    (tmp_path / "a" / JUDGED).write_bytes(b"torn")
    with pytest.raises(BundleError, match="wanted values by validation case"):
        Judged.load(tmp_path / "a" / JUDGED)


def test_an_interval_counts_users_not_cases() -> None:
    """40 users of 5 equal cases each are 40 draws: the interval is as wide as that of one case a user."""
    random = np.random.default_rng(0)
    users, per_user = np.repeat(np.arange(40), 5).astype(np.int32), random.normal(size=40)
    many = paired(Judged(users, {"m": per_user[users]}), {"m": np.zeros(200)}, "m", "")
    few = paired(Judged(np.arange(40, dtype=np.int32), {"m": per_user}), {"m": np.zeros(40)}, "m", "")
    assert many.high is not None
    assert few.high is not None
    assert many.high == pytest.approx(few.high)
    some = judged(1).some(np.array([1, 2, 4, 9]))
    assert some.segments["history=0"].tolist() == [1, 2]
    assert judged(1).by_segment()["history=0"]["cases"] == 100


def test_size_and_latency_stay_within_each_surfaces_budget(tmp_path: Path) -> None:
    settings = Settings.model_validate({"surfaces": {"home": {"bundle_bytes": 1000}, "mail": {"timeout_ms": 40}}})
    both = ["home", "mail"]
    assert within_budget(settings, both, size=1000, latency_ms=40.0).passed
    size = within_budget(settings, both, size=1001)
    assert size.reason == "size: found 1001 bytes, wanted at most 1000 (surfaces.home.bundle_bytes)"
    late = within_budget(settings, both, latency_ms=40.5)
    assert late.reason.startswith("latency: found 40.5 ms of CPU for a lone request, wanted at most 40 (surfaces.ma")
    assert examine(None, lambda: 12.0, latency_judge(settings, both)).figures == {"latency_ms": 12.0}

    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    manifest = {"id": "big", "metrics": {"ndcg_at_10": 0.1}, "sizes": {"bytes": 2000}, "surfaces": both}
    registry.register("big", tmp_path, manifest)
    with pytest.raises(GateRefused, match="size: found 2000 bytes") as refused:
        admit(registry, settings, "big")
    assert registry.promotion(str(refused.value.figures["promotion"])).figures["failed"] == "size"
    assert admit(registry, settings, "big", ["mail"]).promotion.state == "loading"
    with pytest.raises(GateRefused, match="latency: found 99"):
        admit(registry, settings, "big", ["mail"], smoke=lambda: 99.0)
    assert admit(registry, settings, "big", force=True, smoke=lambda: 99.0).promotion.figures["latency_ms"] == 99.0


def test_the_gate_pairs_what_lies_in_both_bundles(tmp_path: Path) -> None:
    """Of the very same validation cases, whatever was live when they were built."""
    settings = Settings.model_validate({"surfaces": {"home": {}}})
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    for name, one in (("a", judged(1)), ("worse", judged(2, -0.004)), ("close", judged(3, -0.0001))):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name / JUDGED)
        mean = float(one.values["ndcg_at_10"].mean())
        split = {"snapshot": "s", "cases": 200}
        manifest = {"id": name, "metrics": {"ndcg_at_10": mean}, "data_hash": "d", "validation": split}
        registry.register(name, tmp_path / name, manifest)
    registry.move("a", {"home": None})
    with pytest.raises(GateRefused, match="wanted an interval that reaches zero") as refused:
        admit(registry, settings, "worse")
    assert refused.value.figures["basis"] == "same validation cases"
    interval: Any = refused.value.figures["interval"]
    assert interval[0] < -0.004 < interval[1] < 0
    assert admit(registry, settings, "close").promotion.figures["interval"][1] > 0
