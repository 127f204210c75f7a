"""`manta evaluate` on folders small enough to judge by hand, and against published figures where the data are there."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import MantaError
from app.evaluation.evaluate import Protocol, evaluate
from app.evaluation.folder import read_folder
from app.evaluation.judging import _first
from app.evaluation.row_weights import RowWeights
from app.event_weights import EventWeight
from scripts.cli import main

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def folder(path: Path, **tables: Mapping[str, Any]) -> Path:
    for name, columns in tables.items():
        pq.write_table(pa.table(dict(columns)), path / f"{name}.parquet")
    return path


# Events: a 4, b 3, c 2, d 1. Popularity ranks a, b, c, d.
TRAIN = {
    "user_id": ["u", "v", "w", "x", "u", "v", "w", "u", "v", "x"],
    "item_id": ["a", "a", "a", "a", "b", "b", "b", "c", "c", "d"],
}


def run(path: Path, protocol: Protocol = "top-n", **options: Any) -> dict[str, Any]:
    return evaluate(path, "popularity", protocol, **options)


def test_top_n_masks_what_was_fitted_and_counts_every_user(tmp_path: Path) -> None:
    test = {
        # w: c, d are left, in this order. x: b, c. new: nothing is masked, a first. u: d alone is left.
        "user_id": ["w", "w", "x", "new", "u", "u"],
        "item_id": ["d", "c", "c", "a", "b", "unheard-of"],
    }
    found = run(folder(tmp_path, train=TRAIN, test=test))
    assert (found["n_users"], found["n_cases"], found["n_cold_targets"]) == (4, 4, 1)
    metrics = found["metrics"]
    assert metrics["recall_at_5"] == pytest.approx((1 + 1 + 1 + 0) / 4)
    assert metrics["mrr_at_5"] == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)
    assert metrics["ndcg_at_5"] == pytest.approx((1 + 1 / math.log2(3) + 1 + 0) / 4)
    assert metrics["hit_rate_at_50"] == pytest.approx(3 / 4)
    assert found["ci95"]["recall_at_5"][0] <= 0.75 <= found["ci95"]["recall_at_5"][1]


def test_a_pair_that_repeats_counts_once(tmp_path: Path) -> None:
    test = {"user_id": ["x", "x", "x", "x"], "item_id": ["c", "c", "gone", "gone"]}
    metrics = run(folder(tmp_path, train=TRAIN, test=test))["metrics"]
    assert metrics["recall_at_5"] == pytest.approx(1 / 2)
    assert metrics["capped_recall_at_5"] == pytest.approx(1 / 2)


def test_next_item_of_named_histories(tmp_path: Path) -> None:
    test = {"history": [["a", "b"], [], ["unheard-of"]], "target": ["a", "b", "d"]}
    path = folder(tmp_path, train=TRAIN, test=test)
    assert run(path, "next-item")["metrics"]["mrr_at_5"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    masked = run(path, "next-item", mask_history=True)
    assert masked["metrics"]["mrr_at_5"] == pytest.approx((0 + 1 / 2 + 1 / 4) / 3)
    assert masked["n_users"] == 3


def test_a_sample_ranks_the_target_among_its_negatives_alone(tmp_path: Path) -> None:
    negatives = [["a", "b", "b"], ["d", "gone"], ["a"]]
    test = {"user_id": ["u", "u", "new"], "target": ["c", "b", "gone"], "negatives": negatives}
    found = run(folder(tmp_path, train=TRAIN, test=test), "sampled")
    assert found["metrics"]["mrr_at_5"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert (found["n_users"], found["n_cases"], found["n_cold_targets"]) == (2, 3, 1)


def test_valid_is_fitted_on_unless_it_judges(tmp_path: Path) -> None:
    valid = {"user_id": ["x"] * 5, "item_id": ["d"] * 5}
    path = folder(tmp_path, train=TRAIN, valid=valid, test={"user_id": ["new"], "item_id": ["d"]})
    assert run(path)["metrics"]["mrr_at_5"] == 1.0
    judged = run(path, "next-item", on_valid=True)
    assert judged["on"] == "valid"
    assert judged["metrics"]["mrr_at_5"] == pytest.approx(1 / 4)


def test_items_without_an_event_are_in_the_catalogue(tmp_path: Path) -> None:
    items = {"item_id": ["d", "e", "a"], "title": ["D", "E", "A"]}
    test = {"user_id": ["new", "new"], "item_id": ["e", "f"]}
    found = run(folder(tmp_path, train=TRAIN, items=items, test=test))
    assert found["n_cold_targets"] == 1
    assert found["metrics"]["recall_at_5"] == pytest.approx(1 / 2)


def test_whole_numbers_as_ids_and_times_that_order_the_rows(tmp_path: Path) -> None:
    train = {"user_id": [1, 1, 2], "item_id": [7, 8, 7], "timestamp": [20, 10, 5]}
    test = {"user_id": [1, 3], "item_id": [7, 9]}
    found = run(folder(tmp_path, train=train, test=test), "next-item")
    assert found["metrics"]["mrr_at_5"] == pytest.approx((1 + 0) / 2)


def test_equal_scores_stand_in_an_order_drawn_by_the_seed() -> None:
    scores = np.zeros((2000, 9), np.float32)
    scores[:, 4] = 1.0
    lists = _first(scores, 3, np.random.default_rng(0))
    assert (lists[:, 0] == 4).all()
    assert all(len(set(row)) == 3 for row in lists.tolist())
    shown = np.bincount(lists[:, 1:].ravel(), minlength=9)[[0, 1, 2, 3, 5, 6, 7, 8]]
    assert shown.min() > 400  # 500 each, if nobody is preferred
    np.testing.assert_array_equal(lists, _first(scores, 3, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("tables", "wanted"),
    [
        ({"test": {"user_id": ["u"], "item_id": ["a"]}}, "train.parquet: found no such file"),
        ({"train": TRAIN}, "test.parquet: found no such file"),
        ({"train": {"user_id": ["u"]}, "test": TRAIN}, "found the columns user_id, wanted item_id"),
        ({"train": {"user_id": ["u", None], "item_id": ["a", "b"]}, "test": TRAIN}, "user_id: found 1 nulls"),
        ({"train": {"user_id": [1.5], "item_id": ["a"]}, "test": TRAIN}, "user_id: found double, wanted int64"),
        ({"train": TRAIN, "test": {"user_id": ["u"], "target": ["a"]}}, "wanted user_id and item_id, or history"),
        ({"train": {**TRAIN, "timestamp": [math.nan] * 10}, "test": TRAIN}, "found NaN or infinity"),
        ({"train": TRAIN, "test": {"history": [["a"]], "target": [None]}}, "target: found 1 nulls"),
        ({"train": TRAIN, "test": {"history": ["a"], "target": ["a"]}}, "history: found string, wanted a list"),
    ],
)
def test_bad_data_are_named(tmp_path: Path, tables: dict[str, dict[str, list[Any]]], wanted: str) -> None:
    with pytest.raises(MantaError, match=wanted):
        run(folder(tmp_path, **tables))


def test_an_empty_train_and_a_protocol_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    empty = {"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}
    with pytest.raises(MantaError, match="found no rows"):
        run(folder(tmp_path, train=empty, test=TRAIN))
    with pytest.raises(MantaError, match="wanted some"):
        run(folder(tmp_path, train=TRAIN, test=TRAIN), "sampled")


def test_the_command_writes_what_the_contract_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, train=TRAIN, test={"user_id": ["x"], "item_id": ["b"]})
    out = tmp_path / "out.json"
    words = ["--data", str(tmp_path), "--family", "popularity", "--protocol", "top-n", "--json", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words, "--param", "half_life_days=10"])
    assert ended.value.code == 0
    found = json.loads(out.read_text())
    names = "data family protocol on seed params metrics ci95 n_users n_cases n_cold_targets fit_seconds"
    assert set(names.split()) | {"predict_seconds", "peak_rss_bytes"} <= set(found)
    assert found["params"] == {"half_life_days": 10.0}
    wanted = {
        f"{name}_at_{k}" for name in ("recall", "capped_recall", "hit_rate", "ndcg", "mrr") for k in (5, 10, 20, 50)
    }
    assert wanted <= set(found["metrics"])
    assert wanted == set(found["ci95"])
    assert "ndcg" in capsys.readouterr().out
    monkeypatch.setenv("MANTA_LEARN__EVENT_WEIGHTS", "{view: 2, click: {linear: true}}")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words, "--weigh", "view"])
    assert ended.value.code == 0
    assert json.loads(out.read_text())["weigh"] == {"view": 2.0, "click": {"linear": True}}
    for wrong in (["--param", "half_life_days"], ["--protocol", "guess"], ["--on", "train"], ["--family", "none"]):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *words, *wrong])
        assert ended.value.code == 2


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2)])
def test_items_that_no_row_names_are_found_by_their_vectors(tmp_path: Path, kind: pa.DataType) -> None:
    pictures = [[1, 0], [0, 1], [0.9, 0.1], [0.1, 0.9], None]
    items = {"item_id": ["a", "b", "like a", "like b", "none"], "picture": pa.array(pictures, kind)}
    train = {"user_id": ["u", "v"], "item_id": ["a", "b"]}
    path = folder(tmp_path, train=train, items=items, test={"user_id": ["u", "v"], "item_id": ["like a", "like b"]})
    found = evaluate(path, "vector", "top-n", params={"column": "picture"})
    assert found["metrics"]["mrr_at_5"] == 1.0
    with pytest.raises(MantaError, match="column 'item': found no such column"):
        evaluate(path, "vector", "top-n", params={"column": "item"})


def test_rows_weigh_as_events_by_the_settings(tmp_path: Path) -> None:
    train = {
        "user_id": ["u", "u", "u", "u", "v", "v", "v"],
        "item_id": ["a", "b", "seen", "c", "a", "d", "b"],
        "timestamp": [0, 1, 5, 121, 0, 60, 9000],
        "event_type": [None, None, "impression", None, None, "buy", None],
        "value": [None, None, None, None, 1.0, None, math.nan],
    }
    path = folder(tmp_path, train=train, test={"user_id": ["new"], "item_id": ["d"]})
    view = {"log1p": True, "min_s": 3, "cap_s": 100}
    weights = {"view": EventWeight.model_validate(view), "buy": EventWeight(weight=2.0)}
    weigh = RowWeights(weights, 1800.0, "view")
    data = read_folder(path, on_valid=False, weigh=weigh)
    fitted, ids = data.fitted, data.catalogue.item_ids
    # u left a after 1 s, b after 120 s (an impression ends nothing), is still at c; v had a for 1 s, is still at b.
    assert [ids[item] for item in fitted.items] == ["b", "d", "c", "b"]
    assert fitted.weights.tolist() == pytest.approx([math.log1p(100), 2.0, 1.0, 1.0])
    before = fitted.histories_before(np.arange(4))
    assert [before.items[start:end].tolist() for start, end in pairwise(before.offsets.tolist())] == [
        [ids.index("a")],  # not known yet that it would be left so soon
        [],
        [ids.index("b")],
        [ids.index("d")],
    ]
    assert before.weights.tolist() == [1.0, 1.0, 2.0]
    result = run(path, weigh=weigh)
    assert result["weigh"] == {"view": view, "buy": 2.0}
    assert result["metrics"]["mrr_at_5"] == pytest.approx(1 / 2)  # b 5.6, d 2, c 1
    for wrong, wanted_line in (
        ({"value": [math.inf] * 7}, "value: found infinity"),
        ({"value": ["x"] * 7}, "value: found string, wanted a number"),
        ({"event_type": [1] * 7}, "event_type: found int64, wanted text"),
        ({"event_type": ["other"] * 7}, "found no row that weighs anything"),
    ):
        with pytest.raises(MantaError, match=wanted_line):
            run(folder(tmp_path, train={**train, **wrong}), weigh=weigh)
    del train["timestamp"]
    with pytest.raises(MantaError, match="found a dwell time missing and no timestamp"):
        run(folder(tmp_path, train=train), weigh=weigh)


@pytest.mark.skipif(not (DATA / "gowalla").exists(), reason="the evaluation data are not there")
def test_popularity_on_gowalla_is_what_a_script_of_its_own_finds() -> None:
    """Recall .0416 and NDCG .0317 at 20 on the LightGCN split."""
    metrics = run(DATA / "gowalla")["metrics"]
    assert metrics["recall_at_20"] == pytest.approx(0.0416, abs=0.0002)
    assert metrics["ndcg_at_20"] == pytest.approx(0.0317, abs=0.0002)
