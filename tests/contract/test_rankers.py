"""Every ranker behind the Protocol: it learns what decides, scores a row alike in any batch, and survives its files."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from app.bundles.load import load_bundle
from app.bundles.manifest import read_manifest
from app.chain.sample import Sample
from app.errors import BundleError
from app.features.items import ItemFeatures
from app.features.table import feature_names, make_spec
from app.models.families import make as make_model
from app.ranking.calibration import reliability
from app.ranking.examples import NEXT, Examples, ndcg_of_targets
from app.ranking.kinds import RANKERS, LambdaParams, LambdaRanker, NetworkParams, NetworkRanker
from app.ranking.next_events import statistics_steps, training_examples
from app.ranking.ranker import TrainableRanker, TrainingReport, weighted_score
from app.retrieval.sources import retrieve, source_of
from tests.unit.chain_world import World, catalogue, interactions
from tests.unit.clicks import NAMES, clicks, relevance
from tests.unit.tiny_bundle import MIX, write_tiny

GOLDEN = Path(__file__).parent.parent / "golden" / "bundle_v1"
Make = Callable[..., TrainableRanker]
NETWORK = {"epochs": 10, "batch_cases": 32, "learning_rate": 0.01, "hidden": 16, "dropout": 0.0}
TREES = {"trees": 60, "leaves": 7, "least_rows": 20, "patience": 60, "learning_rate": 0.1}


def network(names: tuple[str, ...] = NAMES, **more: object) -> TrainableRanker:
    return NetworkRanker(names, NetworkParams.model_validate(NETWORK | more))


def trees(names: tuple[str, ...] = NAMES, **more: object) -> TrainableRanker:
    return LambdaRanker(names, LambdaParams.model_validate(TREES | more))


MAKERS = pytest.mark.parametrize("make", [network, trees], ids=["network", "lightgbm"])


def products(cases: int, seed: int) -> Examples:
    """12 candidates a case; the target is the one with the largest a * b, on very unequal scales; some have none."""
    random = np.random.default_rng(seed)
    table = random.normal(size=(cases * 12, 4)).astype(np.float32)
    table[:, 3] = 7.0
    targets = (table[:, 0] * table[:, 1]).reshape(cases, 12).argmax(axis=1)
    table[:, 1] *= 1000.0
    targets[::5] = -1
    return Examples.of_targets(table, np.arange(cases + 1) * 12, targets)


@MAKERS
def test_it_learns_what_decides_the_same_each_time_and_survives_its_files(make: Make, tmp_path: Path) -> None:
    ranker, again, learned = make(tuple("abcd")), make(tuple("abcd")), products(400, 0)
    report = ranker.fit(learned, seed=3)
    again.fit(learned, seed=3)
    fresh = products(100, 1)
    scores = ranker.score(fresh.features)
    assert ndcg_of_targets(scores, fresh.answered() and fresh)[fresh.targets >= 0].mean() > 0.75
    assert (report.cases, ranker.objectives) == (320, (NEXT,))
    assert report.losses[report.best - 1] == min(report.losses)
    assert np.array_equal(again.score(fresh.features), scores)
    ranker.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".txt"}
    loaded = RANKERS[ranker.kind].load(tmp_path)
    assert (loaded.feature_names, loaded.objectives) == (tuple("abcd"), (NEXT,))
    assert np.array_equal(loaded.score(fresh.features), scores)
    alone = np.concatenate([loaded.score(fresh.features[row : row + 1]) for row in range(30)])
    np.testing.assert_allclose(alone, scores[:30], atol=1e-5)
    assert loaded.score(fresh.features[:0]).shape == (0,)
    assert loaded.probabilities(fresh.features[:0]).shape == (0, 1)
    with pytest.raises(ValueError, match=r"found shape \(1200, 3\), wanted \(R, 4\)"):
        loaded.score(fresh.features[:, :3])
    described = json.loads((tmp_path / "ranker.json").read_text())
    (tmp_path / "ranker.json").write_text(json.dumps(described | {"features": ["a", "b"]}))
    with pytest.raises(BundleError):
        RANKERS[ranker.kind].load(tmp_path)


@MAKERS
def test_too_little_to_learn_from(make: Make) -> None:
    with pytest.raises(ValueError, match="found 8 cases"):
        make(tuple("abcd")).fit(products(10, 0))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    middle = (len(first) - 1) / 2
    one, other = (np.argsort(np.argsort(values)) - middle for values in (first, second))
    return float((one * other).sum() / (one * one).sum())


@pytest.fixture(scope="module", params=[(network, 3000), (trees, 10_000)], ids=["network", "lightgbm"])
def pair(request: pytest.FixtureRequest) -> tuple[TrainableRanker, TrainableRanker, TrainingReport]:
    """Two that learned from the same log: one takes clicks as they are, the other takes the position's part out."""
    make, lists = request.param
    naive, corrected = make(positions=0), make()
    log = clicks(lists, 0)
    naive.fit(log)
    return naive, corrected, corrected.fit(log)


Pair = tuple[TrainableRanker, TrainableRanker, TrainingReport]


def anyone(seed: int) -> np.ndarray:
    """Items that nobody has put into an order."""
    return np.random.default_rng(seed).normal(size=(10_000, 3)).astype(np.float32)


def test_position_bias_is_taken_out(pair: Pair) -> None:
    fresh = anyone(1)
    by = [ranker.probabilities(fresh)[:, 0] for ranker in pair[:2]]
    true = [rank_correlation(scores, relevance(fresh)) for scores in by]
    old = [abs(rank_correlation(scores, fresh[:, 1])) for scores in by]
    assert true[0] < 0.85  # clicks favour what the old order showed first: it is learned with them
    assert true[1] > 0.93
    assert old[0] > 0.4
    assert old[1] < 0.25


def test_probabilities_are_those_of_the_first_place(pair: Pair) -> None:
    naive, ranker, report = pair
    assert set(report.calibration_error) == {"click", "purchase"}
    log = clicks(4000, 7)
    found = ranker.probabilities(log.features)
    assert ((found >= 0) & (found <= 1)).all()
    first = log.positions == 1
    clicked = log.labels[first, 0]
    error, careless = (reliability(r.probabilities(log.features[first])[:, 0], clicked).error for r in (ranker, naive))
    assert error < 0.07
    assert careless > 2 * error
    later = log.positions == 4  # what nobody looks at is not clicked: the probability is not that of being clicked here
    assert found[later, 0].mean() > 2 * log.labels[later, 0].mean()
    assert reliability(found[:, 1], log.labels[:, 1]).error < 0.02


def test_a_surface_weighs_the_objectives(pair: Pair) -> None:
    ranker, fresh = pair[1], anyone(2)
    few = fresh[:50]
    expected = ranker.probabilities(few) @ np.array([1.0, 30.0], np.float32)
    np.testing.assert_allclose(weighted_score(ranker, few, {"click": 1.0, "purchase": 30.0}), expected, rtol=1e-5)
    np.testing.assert_allclose(ranker.score(few), ranker.probabilities(few).sum(axis=1), rtol=1e-6)
    by_click, by_purchase = (weighted_score(ranker, fresh, {name: 1.0}) for name in ("click", "purchase"))
    assert rank_correlation(by_click, fresh[:, 0]) > 0.9
    assert rank_correlation(by_purchase, fresh[:, 2]) > 0.9
    assert abs(rank_correlation(by_click, fresh[:, 2])) < 0.2
    assert np.array_equal(weighted_score(ranker, few, {"like": 1.0}), ranker.score(few))
    alone = np.concatenate([weighted_score(ranker, few[row : row + 1], {"purchase": 2.0}) for row in range(50)])
    np.testing.assert_allclose(alone, weighted_score(ranker, few, {"purchase": 2.0}), atol=1e-6)


def test_objectives_survive_the_files(pair: Pair, tmp_path: Path) -> None:
    pair[1].save(tmp_path)
    loaded, few = RANKERS[pair[1].kind].load(tmp_path), anyone(3)[:40]
    assert loaded.objectives == ("click", "purchase")
    assert np.array_equal(loaded.probabilities(few), pair[1].probabilities(few))


def trees_on_next_events() -> LambdaRanker:
    """Learned on the examples of a tiny world."""
    data, items = interactions(), catalogue()
    sources = {name: source_of(make_model(name).fit(data.first(200), items)) for name, _ in MIX}
    spec = make_spec(items, [name for name, _ in MIX])
    cases = np.arange(200, len(data))
    ranker = LambdaRanker(feature_names(spec), LambdaParams(trees=5, leaves=6, least_rows=5, learning_rate=0.3))
    ranker.fit(
        training_examples(
            partial(retrieve, sources),
            data,
            cases,
            spec=spec,
            items=ItemFeatures.of(spec, items),
            statistics=statistics_steps(data, cases, spec.half_lives_days),
            mix=MIX,
            limit=40,
        )
    )
    return ranker


def test_a_bundle_of_trees_answers_as_they_score(tmp_path: Path) -> None:
    ranker, folder = trees_on_next_events(), write_tiny(tmp_path, "trees", ranker=trees_on_next_events())
    assert "ranker/objective_0.txt" in read_manifest(folder).files
    loaded = load_bundle(folder)
    assert loaded.ranker is not None
    assert loaded.ranker.kind == "lightgbm"
    world = World(loaded, seen_of=Sample(1.0))  # type: ignore[arg-type]
    world.click("u", "i0", "i4")
    answer = world.answer(user_id="u", k=30)
    assert answer.seen is not None
    np.testing.assert_array_equal([item.score for item in answer.items], ranker.score(answer.seen.values))
    assert 0 < answer.items[-1].score < answer.items[0].score < 1
    (folder / "ranker" / "objective_0.txt").write_text("tree\nbroken")
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_a_gateway_without_trees_does_not_import_them() -> None:
    program = (
        "import sys\n"
        "from app.bundles.load import load_bundle\n"
        "from pathlib import Path\n"
        "from app.recommend import warm_up\n"
        f"bundle = load_bundle(Path({str(GOLDEN)!r}))\n"
        "assert bundle.manifest.ranker == 'network'\n"
        "warm_up(bundle)\n"
        "assert not {'lightgbm', 'narwhals'} & set(sys.modules), 'taken in'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
