"""A training set from tables: order, weights, duplicates, merges, removals, the catalogue."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.errors import MantaError
from app.settings import LearnSettings
from tune.dataset import TrainingSet, item_columns, training_set, weighted

WEIGHTS = {"rating": 1.0, "click": 0.5, "view": 0.0}
ITEMS = pa.table(
    {
        "item_id": ["c", "a", "b", "gone", "never"],
        "available": [True, True, True, False, False],
        "columns": [json.dumps({"year": 1990}), json.dumps({"genres": ["Drama"], "year": 2001}), "{}", "{}", "{}"],
    }
)


def made(*rows: tuple[Any, ...], items: pa.Table = ITEMS) -> TrainingSet:
    """Rows of (user, session, item, type, second, partition, offset)."""
    names = ("user_id", "session_id", "item_id", "event_type", "event_time", "partition", "offset")
    types = (*[pa.string()] * 4, pa.timestamp("us", "UTC"), pa.int32(), pa.int64())
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    columns[4:5] = [tuple(second * 1_000_000 for second in columns[4])]
    table = pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})
    return training_set(weighted(table, WEIGHTS), items, "s")


def events_of(found: TrainingSet) -> list[tuple[str, str]]:
    whole = found.interactions
    return [
        (found.user_ids[u], found.catalogue.item_ids[i])
        for u, i in zip(whole.users.tolist(), whole.items.tolist(), strict=True)
    ]


def test_order_is_time_then_partition_then_offset() -> None:
    found = made(
        ("u", None, "b", "rating", 5, 1, 0),
        ("u", None, "c", "rating", 5, 0, 9),
        ("v", None, "a", "rating", 5, 0, 10),
        ("u", None, "a", "rating", 1, 1, 7),
    )
    assert events_of(found) == [("u", "a"), ("u", "c"), ("v", "a"), ("u", "b")]
    assert found.interactions.times.tolist() == [1000, 5000, 5000, 5000]
    assert found.catalogue.item_ids == ["a", "b", "c"]
    assert found.catalogue.columns.column("year").to_pylist() == [2001, None, 1990]


def test_weights_duplicates_and_unknown_items() -> None:
    found = made(
        ("u", None, "a", "click", 1, 0, 0),
        ("u", None, "a", "click", 1, 0, 0),
        ("u", None, "b", "view", 2, 0, 1),
        ("u", None, "b", "share", 3, 0, 2),
        ("u", None, "unheard-of", "rating", 4, 0, 3),
        ("u", None, "gone", "rating", 5, 0, 4),
    )
    assert events_of(found) == [("u", "a"), ("u", "gone")]
    assert found.interactions.weights.tolist() == [0.5, 1.0]
    assert dict(zip(found.catalogue.item_ids, found.available.tolist(), strict=True))["gone"] is False
    assert "never" not in found.catalogue.item_ids


def test_a_merged_session_is_the_users_up_to_the_merge() -> None:
    found = made(
        (None, "s", "a", "rating", 1, 0, 0),
        ("u", "s", None, "merge", 2, 0, 1),
        ("u", "s", None, "merge", 2, 1, 1),
        (None, "s", "b", "rating", 3, 0, 2),
        ("u", "t", "c", "rating", 4, 0, 3),
        (None, "u", "c", "rating", 5, 0, 4),
    )
    assert events_of(found) == [("u", "a"), ("s", "b"), ("u", "c"), ("u", "c")]
    assert found.interactions.n_users == 3
    assert sorted(found.user_ids) == ["s", "u", "u"]
    assert found.sessions.sum() == 2


def test_remove_takes_out_what_came_before_it() -> None:
    found = made(
        ("u", None, "a", "rating", 1, 0, 0),
        ("v", None, "a", "rating", 1, 0, 1),
        ("u", None, "b", "rating", 2, 0, 2),
        ("u", None, "a", "remove", 3, 0, 3),
        ("u", None, "a", "rating", 4, 0, 4),
    )
    assert events_of(found) == [("v", "a"), ("u", "b"), ("u", "a")]


def test_without_items_the_catalogue_is_what_events_name() -> None:
    found = made(("u", None, "b", "rating", 1, 0, 0), ("u", None, "a", "rating", 2, 0, 1), items=ITEMS.slice(0, 0))
    assert found.catalogue.item_ids == ["a", "b"]
    with pytest.raises(MantaError, match="found no event with a weight"):
        made()


def test_equal_data_have_equal_hashes_in_any_order() -> None:
    rows = [("u", None, "a", "rating", 1, 0, 0), ("u", None, "b", "rating", 1, 0, 1)]
    assert made(*rows).data_hash == made(*reversed(rows)).data_hash != made(rows[0]).data_hash


def test_splits_are_by_time() -> None:
    found = made(*[("u", None, "a", "rating", second, 0, second) for second in range(20)])
    split = found.split(LearnSettings())
    assert len(split.fit) == 16
    assert split.ranker_cases.tolist() == [16, 17]
    assert split.validation_cases.tolist() == [18, 19]


def test_item_columns_keep_their_kinds() -> None:
    rows = [{"g": ["x"], "n": 1, "v": [0.5, 1], "odd": "text", "ok": True}, {"n": 2.5, "odd": 7}, {}]
    table = item_columns([json.dumps(row) for row in rows[:2]] + [None])
    assert table.column("g").to_pylist() == [["x"], None, None]
    assert np.nanmax(table.column("n").to_numpy(zero_copy_only=False)) == 2.5
    assert table.column("v").to_pylist()[0] == [0.5, 1.0]
    assert table.column("odd").to_pylist() == ['"text"', "7", None]
    assert table.column("ok").to_pylist() == [True, None, None]
