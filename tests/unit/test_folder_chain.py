"""A chain on a folder of data: what is set apart, ranks as `manta evaluate` has them, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import MantaError
from app.evaluation.evaluate import evaluate
from app.evaluation.folder import read_folder
from scripts.cli import main
from tests.unit.chain_world import interactions
from tune.folder_chain import evaluate_chain
from tune.held_out_events import only_some_users, set_apart
from tune.ranker_plan import RankerPlan


def sessions(path: Path) -> Path:
    """Visits that walk through items of a genre; a row of the test is the next item of such a walk."""
    random = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"user_id": [], "item_id": [], "timestamp": []}
    test: dict[str, list[Any]] = {"history": [], "target": []}
    for user in range(420):
        walk = ((user % 3) + 3 * (random.integers(12) + np.arange(6))) % 36
        walk = np.where(random.random(6) < 0.15, random.integers(0, 36, 6), walk)
        names = [f"i{row}" for row in walk]
        if user < 300:
            rows["user_id"] += [f"u{user}"] * 6
            rows["item_id"] += names
            rows["timestamp"] += list(range(6))
        else:
            test["history"].append(names[:-1])
            test["target"].append(names[-1])
    pq.write_table(pa.table(rows), path / "train.parquet")
    pq.write_table(pa.table(test), path / "test.parquet")
    return path


def test_what_is_set_apart_is_one_last_event_a_user() -> None:
    data = interactions()
    rest, slices = set_apart(data, 20, seed=0, again=False)
    assert (len(slices.ranker), len(slices.validation)) == (20, 20)
    whole = slices.interactions
    assert len(rest) == slices.ranker[0] == len(data) - 40
    assert (np.diff(whole.times) >= 0).all()
    apart = np.concatenate([slices.ranker, slices.validation])
    assert len(set(whole.users[apart].tolist())) == 40
    for case in apart.tolist():
        own = np.flatnonzero(data.users == whole.users[case])
        assert whole.items[case] == data.items[own[-1]]
        history = whole.histories_before(np.array([case]))
        assert history.items.tolist() == data.items[own[:-1]].tolist()
    again, same = set_apart(data, 20, seed=0, again=False)
    np.testing.assert_array_equal(again.items, rest.items)
    np.testing.assert_array_equal(same.validation, slices.validation)
    few = only_some_users(data, 7, seed=0)
    assert len(np.unique(few.users)) == 7
    assert len(few) == np.isin(data.users, few.users).sum()
    assert only_some_users(data, None, seed=0) is data


def test_families_stand_where_evaluate_puts_them(tmp_path: Path) -> None:
    folder = sessions(tmp_path)
    found = evaluate_chain(folder, "next-item", families=("item_knn", "session_knn"), mask_history=True)
    rows = {row["stage"]: row for row in found["test"]}
    for family in ("item_knn", "session_knn"):
        whole = evaluate(folder, family, "next-item", mask_history=True)
        # Families of neighbours name no item without a neighbour; `evaluate` draws the order of those.
        for metric in ("ndcg_at_10", "recall_at_20"):
            ours = rows[f"{family} alone"]["metrics"][metric]["value"]
            assert ours == pytest.approx(whole["metrics"][metric], abs=0.02)
    chain = rows["the chain"]
    single = rows[f"{found['best_single']} alone"]
    assert single["difference"] is None
    assert chain["difference"]["ndcg_at_10"]["value"] == pytest.approx(
        chain["metrics"]["ndcg_at_10"]["value"] - single["metrics"]["ndcg_at_10"]["value"]
    )
    assert found["holds"] is (chain["difference"]["ndcg_at_10"]["ci95"][1] >= 0)
    assert chain["metrics"]["ndcg_at_10"]["value"] > 0.3
    assert found["n_cases"] == 120
    assert [row["kind"] for row in found["validation"]].count("chain") == 1
    again = evaluate_chain(folder, "next-item", families=("item_knn", "session_knn"), mask_history=True)
    for part in ("mix", "ranker", "validation", "test"):
        assert again[part] == found[part]


def test_sets_of_held_out_items_and_what_may_come_again(tmp_path: Path) -> None:
    folder = sessions(tmp_path)
    rows = pq.read_table(folder / "train.parquet").drop_columns(["timestamp"])
    pq.write_table(rows.slice(0, 1500), folder / "train.parquet")
    pq.write_table(rows.slice(1500).append_column("n", pa.nulls(300)), folder / "test.parquet")
    assert len(read_folder(folder, on_valid=False).held) == 50
    plain = RankerPlan(kinds=())
    found = evaluate_chain(folder, "top-n", families=("popularity", "ials"), rankers=plain, users=200)
    assert (found["metric"], found["ranker"], found["mask_history"]) == ("ndcg_at_20", "", True)
    assert {row["stage"] for row in found["test"]} == {"popularity alone", "ials alone", "the chain"}
    unmasked = evaluate_chain(sessions(tmp_path), "next-item", families=("popularity",), rankers=plain)
    assert unmasked["mask_history"] is False
    lone, chain = unmasked["test"]
    assert chain["metrics"] == lone["metrics"]  # one family, not ranked: the chain is that family
    assert unmasked["holds"]
    with pytest.raises(MantaError, match="found --protocol sampled"):
        evaluate_chain(folder, "sampled")


def test_the_command_shows_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sessions(tmp_path)
    base = ["evaluate", "--data", str(folder), "--protocol", "next-item", "--chain", "popularity,item_knn"]
    with pytest.raises(SystemExit) as ended:
        main([*base, "--users", "120", "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "on the part that the chain was chosen by" in said
    assert "item_knn alone" in said
    assert "holds" in said
    assert json.loads((tmp_path / "out.json").read_text())["families"] == ["popularity", "item_knn"]
    with pytest.raises(SystemExit) as ended:
        main([*base, "--family", "ease"])
    assert ended.value.code == 2
    assert "--family: found 'ease', wanted nothing, since --chain is there" in capsys.readouterr().err
