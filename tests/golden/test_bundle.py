"""The bundle format on disk: a bundle of version 1 must always load and answer as it did when it was written.

After a deliberate change of the format (a new version beside this one), write a new golden folder with
`python -m tests.golden.test_bundle FOLDER`; this one stays.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.bundles.build import Lineage, write_bundle
from app.bundles.load import LoadedBundle, load_bundle
from app.bundles.manifest import ValidationSplit
from app.cache import ListStore, write_lists_sst
from app.features.items import ItemFeatures
from app.features.statistics import ItemStatistics
from app.features.table import feature_names, make_spec
from app.models.families import make
from app.ranking.network import NetworkParams, NetworkRanker
from app.ranking.next_events import training_examples
from app.retrieval.sources import retrieve, source_of
from tests.unit.chain_world import DAY_MS, World, catalogue, interactions

HERE = Path(__file__).parent / "bundle_v1"
MIX = (("item_knn", 30), ("ease", 30), ("popularity", 20), ("content", 20))


def test_version_1_loads_and_answers_the_same() -> None:
    loaded = load_bundle(HERE)
    golden = json.loads((HERE.parent / "bundle_v1_answers.json").read_text())
    for found, wanted in zip(answers(loaded), golden, strict=True):
        assert [item for item, _ in found] == [item for item, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_version_1_lists(tmp_path: Path) -> None:
    lists = load_bundle(HERE).lists
    assert lists is not None
    store = ListStore(tmp_path / "lists", lists)
    rows = store.rows("u:7")
    assert rows is not None
    assert rows.tolist() == [3, 1, 2]
    store.close()
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 200_000


def answers(loaded: LoadedBundle) -> list[list[tuple[str, float]]]:
    """Of a stranger, of users with one and with several events, one after a new item, and for an anchor."""
    world = World(loaded)  # type: ignore[arg-type]
    world.click("one", "i5", start_ms=30 * DAY_MS)
    world.click("some", "i1", "i9", "i13", "i5", start_ms=30 * DAY_MS)
    requests: list[dict[str, Any]] = [{"user_id": "stranger"}, {"user_id": "one"}, {"user_id": "some"}]
    answered = [world.answer(**request, k=10) for request in [*requests, {"items": ["i2"]}]]
    world.put("new", {"genres": ["Comedy"], "title": "Film 100 Comedy", "year": 1969})
    answered.append(world.answer(user_id="some", k=10))
    return [[(item.item_id, item.score) for item in answer.items] for answer in answered]


def write(folder: Path) -> None:
    """Writes the golden bundle and its answers into an existing folder."""
    items, data = catalogue(), interactions()
    cut = 300
    early = data.before(int(data.times[cut]))
    spec = make_spec(items, [name for name, _ in MIX])
    examples = training_examples(
        partial(retrieve, {name: source_of(make(name).fit(early, items)) for name, _ in MIX}),
        data,
        np.arange(cut, len(data)),
        spec=spec,
        items=ItemFeatures.of(spec, items),
        statistics=ItemStatistics.of(early, spec.half_lives_days),
        mix=MIX,
        limit=50,
    )
    ranker = NetworkRanker(feature_names(spec), NetworkParams(hidden=8))
    ranker.fit(examples)
    written = write_bundle(
        folder,
        bundle_id="bundle_v1",
        catalogue=items,
        models={name: make(name).fit(data, items) for name, _ in MIX},
        mix=MIX,
        candidates=50,
        ranker=ranker,
        spec=spec,
        statistics=ItemStatistics.of(data, spec.half_lives_days),
        popular=np.argsort(-np.bincount(data.items, minlength=60), kind="stable").astype(np.int32),
        lineage=Lineage(
            surfaces=("home",),
            snapshot="1234567890",
            sweep="golden",
            code_version="1",
            metrics={"ndcg_at_10": 0.25, "item_knn.ndcg_at_10": 0.2},
            validation=ValidationSplit(snapshot="1234567890", from_ms=1, to_ms=2, cases=10, seed=0),
        ),
        write_lists=partial(write_lists_sst, lists={"u:7": np.array([3, 1, 2], np.int32)}),
    )
    (folder / "bundle_v1_answers.json").write_text(json.dumps(answers(load_bundle(written)), indent=1) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
