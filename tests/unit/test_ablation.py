"""What each stage contributes: means, paired differences and their intervals by hand."""

import numpy as np
import pytest

from app.evaluation.metrics import bootstrap_interval
from tune.ablation import Kind, Stage, ablation, best_alone, cells, holds

USERS = np.array([0, 0, 1, 2])


def stage(name: str, kind: Kind, *worth: float) -> Stage:
    per_case = np.array(worth)
    return Stage(name, kind, {"ndcg_at_10": per_case, "recall_at_20": np.ceil(per_case), "mrr_at_5": per_case / 2})


WEAK = stage("popularity alone", "alone", 0, 0, 1, 0)
STRONG = stage("ease alone", "alone", 1, 0.5, 0, 0)
CHAIN = stage("the chain", "chain", 1, 0.5, 0.5, 0)
LESS = stage("the chain without ease", "without", 0, 0, 0.5, 0)


def test_each_stage_stands_beside_the_best_family() -> None:
    rows = {row["stage"]: row for row in ablation([WEAK, STRONG, CHAIN, LESS], USERS, "ndcg_at_10")}
    assert rows["ease alone"]["difference"] is None  # .375 against .25: it is the best
    assert rows["the chain"]["metrics"]["ndcg_at_10"]["value"] == pytest.approx(0.5)
    assert rows["the chain"]["metrics"]["recall_at_20"]["value"] == pytest.approx(0.75)
    assert rows["the chain"]["difference"]["ndcg_at_10"]["value"] == pytest.approx(0.125)
    assert rows["popularity alone"]["difference"]["ndcg_at_10"]["value"] == pytest.approx(-0.125)
    assert rows["the chain without ease"]["difference"]["recall_at_20"]["value"] == pytest.approx(-0.25)
    # By user the differences are 0, 0 | .5 | 0: drawn together, so none below 0, and .5 at most.
    assert rows["the chain"]["difference"]["ndcg_at_10"]["ci95"] == [0.0, pytest.approx(0.5)]
    difference = CHAIN.per_case["ndcg_at_10"] - STRONG.per_case["ndcg_at_10"]
    assert tuple(rows["the chain"]["difference"]["ndcg_at_10"]["ci95"]) == bootstrap_interval(difference, USERS)
    assert list(rows["the chain"]["metrics"]) == ["ndcg_at_10", "recall_at_20"]
    of_another = ablation([WEAK, STRONG, CHAIN], USERS, "mrr_at_5", against="popularity alone")
    assert list(of_another[0]["metrics"]) == ["mrr_at_5", "ndcg_at_10", "recall_at_20"]
    assert of_another[0]["difference"] is None
    assert of_another[2]["difference"]["mrr_at_5"]["value"] == pytest.approx(0.125)


def test_the_first_of_equal_families_is_the_best() -> None:
    twin = stage("twin alone", "alone", 0.5, 1, 0, 0)
    assert best_alone([STRONG, twin], "ndcg_at_10") is STRONG
    assert best_alone([twin, STRONG, stage("chain", "chain", 1, 1, 1, 1)], "ndcg_at_10") is twin


def test_a_chain_holds_unless_it_is_surely_below() -> None:
    users = np.arange(200)
    base = (np.arange(200) % 2).astype(float)

    def chain(difference: np.ndarray) -> bool:
        stages = [stage("a alone", "alone", *base), stage("the chain", "chain", *(base + difference))]
        return holds(ablation(stages, users, "ndcg_at_10"), "ndcg_at_10")

    assert chain(np.zeros(200))
    assert chain(np.where(users % 2, -0.01, 0.0098))  # below by less than the interval
    assert not chain(np.where(users % 2, -0.01, 0.0))
    assert chain(np.full(200, 0.01))


def test_a_table_says_values_and_differences() -> None:
    columns, rows = cells(ablation([STRONG, CHAIN], USERS, "ndcg_at_10"))
    assert columns == ["stage", "ndcg_at_10", "difference", "recall_at_20", "difference"]
    assert rows[0][2] == ""
    assert rows[1][0] == "the chain"
    assert rows[1][1].startswith("0.5000 [")
    assert rows[1][2] == "+0.1250 [+0.0000, +0.5000]"
    assert cells([]) == (["stage"], [])
