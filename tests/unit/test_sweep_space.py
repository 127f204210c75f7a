"""Sweep files: what they may say, exact messages for what they may not, and proposals that can be repeated."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import SettingsError
from app.models.families import FAMILIES, Choice, FloatRange, make
from app.settings import Settings
from tune.search import Proposer, proposer_of
from tune.space import SweepFile, load_sweep, parse_sweep

SETTINGS = Settings()
EASE = {"l2": {"loguniform": [10, 1000]}, "place_tau": [5, 10], "n_neighbours": 200}


def sweep(**more: Any) -> SweepFile:
    return parse_sweep({"name": "s", "families": {"ease": {"samples": 6, "space": EASE}}, **more}, "s.yaml", SETTINGS)


def test_metric_and_seed_come_from_the_settings() -> None:
    found = parse_sweep({"name": "s", "families": {"popularity": None}}, "s.yaml", SETTINGS)
    assert (found.metric, found.seed) == ("ndcg_at_10", 0)
    assert parse_sweep({"name": "s", "seed": 7, "families": {"ease": {}}}, "s.yaml", SETTINGS).seed == 7


def test_plain_values_lists_and_ranges() -> None:
    ranges = sweep().families["ease"].ranges(FAMILIES["ease"])
    assert ranges == {
        "l2": FloatRange(10, 1000, log=True),
        "place_tau": Choice((5, 10)),
        "n_neighbours": Choice((200,)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_swept_over_its_own_ranges(family: str) -> None:
    found = parse_sweep({"name": "s", "search": "random", "families": {family: {"samples": 4}}}, "s.yaml", SETTINGS)
    proposer = proposer_of(found, family)
    for number in range(4):
        params = proposer.propose(number)
        assert params.keys() == (FAMILIES[family].space.keys() if number else set())
        make(family, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"famlies": {}}, "s.yaml: famlies: found {}, wanted one of the keys name, metric"),
        ({"families": {}}, "s.yaml: families: found {}, wanted Dictionary should have at least 1 item"),
        ({"families": {"eese": {}}}, "s.yaml: families: found 'eese', wanted one of popularity, "),
        (
            {"families": {"ease": {"sample": 3}}},
            "s.yaml: families.ease.sample: found 3, wanted one of the keys samples, defaults",
        ),
        (
            {"ranker": {"kind": ["network"]}},
            "s.yaml: ranker.kind: found ['network'], wanted one of the keys kinds, examples, network, lightgbm",
        ),
        (
            {"ranker": {"lightgbm": {"depth": 3}}},
            "s.yaml: ranker.lightgbm.depth: found 3, wanted one of the keys trees, leaves, learning_rate",
        ),
        (
            {"ranker": {"kinds": ["forest"]}},
            "s.yaml: ranker.kinds.0: found 'forest', wanted Input should be 'network' or 'lightgbm'",
        ),
        (
            {"families": {"ease": {"samples": 0}}},
            "s.yaml: families.ease.samples: found 0, wanted Input should be greater than or equal to 1",
        ),
        (
            {"families": {"ease": {"space": {"lambda": [1]}}}},
            "s.yaml: families.ease.space.lambda: found 'lambda', wanted one of ",
        ),
        (
            {"families": {"ease": {"space": {"l2": {"loguni": [1, 2]}}}}},
            "s.yaml: families.ease.space.l2: found {'loguni': [1, 2]}, wanted a value, a list of values, or one of "
            "{choice: …}, {uniform: …}, {loguniform: …}, {int: …}, {logint: …}",
        ),
        (
            {"families": {"ease": {"space": {"l2": {"uniform": [9, 3]}}}}},
            "s.yaml: families.ease.space.l2.uniform: found {'uniform': [9, 3]}, wanted [low, high] with low < high",
        ),
        (
            {"families": {"ease": {"space": {"l2": [-1.0]}}}},
            "s.yaml: families.ease.space.l2: found -1.0, wanted Input should be greater than 0",
        ),
        ({"search": "grid"}, "s.yaml: families.ease.space.l2: found 'a range', wanted a list of values, since search"),
        ({"budget_cost": 5}, "s.yaml: budget_cost: found 5.0, wanted cpu_hour or gpu_hour beside it: a price"),
        (
            {"objective": {"latency": 1}},
            "s.yaml: objective.latency: found 1, wanted one of the keys latency_ms, megabyte",
        ),
        (
            {"objective": {"latency_ms": 0.1}, "latency_probes": 0},
            "s.yaml: latency_probes: found 0, wanted at least 1, since objective.latency_ms weighs the latency",
        ),
        (
            {"segment": {"of": "items", "by": "genres", "least": 5}},
            "s.yaml: segment.least: found 5, wanted one of the keys of, by, values, least_events, cases",
        ),
        ({"mix": {"sources": 3}}, "s.yaml: mix.sources: found 3, wanted one of the keys most_sources, counts, tries"),
        (
            {"segment": {"of": "event", "by": "surface"}},
            "s.yaml: segment.of: found 'event', wanted Input should be 'items', 'users' or 'events'",
        ),
        (
            {"segment": {"of": "events", "by": "device"}},
            "s.yaml: segment.by: found 'device', wanted one of event_type, surface, variant, bundle, context, extra",
        ),
        (
            {"segment": {"of": "items", "by": "genres"}, "scheduler": "asha"},
            "s.yaml: scheduler: found 'asha', wanted none, since segment trains many small models a trial",
        ),
        ({"metric": "auc"}, "s.yaml: metric: found 'auc', wanted Input should be 'ndcg_at_5'"),
        ({"name": None}, "s.yaml: name: found None, wanted Input should be a valid string"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        sweep(**change)
    assert str(caught.value).startswith(message)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: \(file\): found 'no such file'"):
        load_sweep(tmp_path / "none.yaml", SETTINGS)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(SettingsError, match=r"\(top\): found 'list', wanted a mapping"):
        load_sweep(tmp_path / "list.yaml", SETTINGS)
    (tmp_path / "torn.yaml").write_text("name: [")
    with pytest.raises(SettingsError, match="wanted readable YAML"):
        load_sweep(tmp_path / "torn.yaml", SETTINGS)


def test_the_shipped_sweeps_are_valid() -> None:
    for file in sorted((Path(__file__).parents[2] / "tune" / "sweeps").glob("*.yaml")):
        found = load_sweep(file, SETTINGS)
        for family in found.families:
            assert proposer_of(found, family).count >= 1


def test_a_grid_is_every_combination_in_order() -> None:
    space = {"l2": [10, 20], "place_tau": [1, 2]}
    plan = {"ease": {"samples": 3, "space": space}}
    proposer = proposer_of(sweep(search="grid", families=plan), "ease")
    assert [proposer.propose(n) for n in range(proposer.count)] == [
        {"l2": 10, "place_tau": 1},
        {"l2": 10, "place_tau": 2},
        {"l2": 20, "place_tau": 1},
    ]


def test_random_proposals_depend_on_seed_and_number_alone() -> None:
    first, again = (proposer_of(sweep(search="random"), "ease") for _ in range(2))
    assert first.propose(0) == {}
    assert first.propose(3) == again.propose(3)
    assert first.propose(3) != first.propose(4)
    assert proposer_of(sweep(search="random", seed=1), "ease").propose(3) != first.propose(3)
    assert 10 <= first.propose(1)["l2"] <= 1000


def value_of(params: dict[str, Any]) -> float:
    return -abs(float(params.get("l2", 500.0)) - 60.0)


def run(proposer: Proposer, first: int, last: int) -> list[dict[str, Any]]:
    tried = []
    for number in range(first, last):
        tried.append(proposer.propose(number))
        proposer.tell(number, tried[-1], value_of(tried[-1]))
    return tried


def test_a_told_optuna_study_goes_on_as_the_interrupted_one_would_have() -> None:
    whole = proposer_of(sweep(), "ease")
    tried = run(whole, 0, 8)
    resumed = proposer_of(sweep(), "ease")
    for number, params in enumerate(tried[:6]):
        resumed.tell(number, params, value_of(params))
    assert run(resumed, 6, 8) == tried[6:]
    assert len({params.get("l2") for params in tried}) == 8


def test_failed_trials_do_not_stop_the_search() -> None:
    proposer = proposer_of(sweep(), "ease")
    for number in range(3):
        proposer.tell(number, proposer.propose(number), None)
    assert proposer.propose(3).keys() == EASE.keys()
