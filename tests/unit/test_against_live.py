"""A bundle that is built is compared with what is live on the same cases; and cases fall into segments."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from app.bundles.build import Lineage
from app.bundles.judged import Judged
from app.bundles.load import load_bundle
from app.bundles.manifest import Comparison, ValidationSplit
from app.bundles.registry import Registry
from app.models.interactions import Catalogue
from app.settings import Settings
from tests.unit.chain_world import N_ITEMS, columns_of, interactions
from tests.unit.tiny_bundle import write_tiny
from tune.against_live import against_live, judge_bundle
from tune.case_segments import by_marks, case_segments
from tune.dataset import TrainingSet

CASES = np.arange(240, 480)


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    rows = [columns_of(row) for row in range(N_ITEMS)]
    columns = pa.table({name: [row[name] for row in rows] for name in ("title", "genres", "year")})
    found = interactions()
    catalogue = Catalogue.of([f"i{row}" for row in range(N_ITEMS)], columns)
    users = [f"u{number}" for number in range(found.n_users)]
    return TrainingSet(
        found, catalogue, np.ones(N_ITEMS, bool), users, np.zeros(found.n_users, bool), "events:1", "hash"
    )


def judged(data: TrainingSet, value: float) -> Judged:
    """Ours: the same figure in each case."""
    users = data.interactions.users[CASES]
    places = {"history=0": np.array([0, 120, 200], np.int32)}
    return Judged(users, {"ndcg_at_10": np.full(len(CASES), value)}, places)


def compared(home: Path, data: TrainingSet, validation: ValidationSplit, data_hash: str = "") -> Comparison | None:
    """Of ours, with 0.9 in each case, with a live bundle of that split and data."""
    lineage = Lineage(metrics={"ndcg_at_10": 0.25}, validation=validation, data_hash=data_hash)
    registry = Registry(f"sqlite:///{home / 'registry.db'}")
    registry.register("live", write_tiny(home / "bundles", "live", lineage=lineage, events=340), {"id": "live"})
    registry.register("idle", home / "gone", {"id": "idle"})
    registry.move("live", {"home": None})
    ours = ValidationSplit(snapshot="events:1", from_ms=10, cases=len(CASES))
    found = against_live(registry, data, CASES, judged(data, 0.9), ours, "ndcg_at_10", 200, None)
    assert set(found) <= {"live"}
    return found.get("live")


def test_events_that_the_live_one_has_not_learned_from_tell_by_case(data: TrainingSet, tmp_path: Path) -> None:
    middle = int(data.interactions.times[CASES[100]])
    found = compared(tmp_path, data, ValidationSplit(to_ms=middle))
    assert found is not None
    assert (found.cases, found.basis) == (140, "events that neither has learned from")
    assert found.ours == pytest.approx(0.9)
    live = judge_bundle(load_bundle(tmp_path / "bundles" / "live"), data, CASES[100:], 200, None)
    assert found.theirs == pytest.approx(live.metrics["ndcg_at_10"])
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.ours - found.theirs < found.high
    assert found.segments["history=0"].cases == 2


def test_nearly_the_same_slice_tells_by_its_mean_and_the_very_same_is_left_to_the_gate(
    data: TrainingSet, tmp_path: Path
) -> None:
    end = int(data.interactions.end)
    nearly = compared(tmp_path / "a", data, ValidationSplit(from_ms=0, to_ms=end))
    assert nearly is not None
    assert (nearly.theirs, nearly.low) == (0.25, None)
    late = ValidationSplit(from_ms=int(data.interactions.times[CASES[120]]), to_ms=end)
    assert compared(tmp_path / "b", data, late) is None


def test_cases_by_history_by_columns_and_by_marks(data: TrainingSet, tmp_path: Path) -> None:
    settings = Settings.model_validate({"learn": {"segments": ["history", "items.genres"]}})
    cases = np.arange(480)
    found = case_segments(settings, tmp_path, data, cases)
    before = {case: int((data.interactions.users[:case] == data.interactions.users[case]).sum()) for case in range(480)}
    assert set(found["history=0"].tolist()) == {case for case, count in before.items() if count == 0}
    assert set(found["history=1-4"].tolist()) == {case for case, count in before.items() if 1 <= count <= 4}
    assert len(found["history=5-19"]) == sum(5 <= count <= 19 for count in before.values())
    assert "history=20+" not in found
    genres = [columns_of(int(item))["genres"] for item in data.interactions.items]
    one = genres[0][0]
    assert found[f"items.genres={one}"].tolist() == [case for case in range(480) if one in genres[case]]
    marks = pa.array([None if place % 3 == 0 else ("few" if place < 9 else "DE") for place in range(480)])
    assert set(by_marks(marks, cases)) == {"DE"}
    assert by_marks(marks, cases)["DE"].tolist()[:3] == [10, 11, 13]
    assert by_marks(None, cases) == {}
