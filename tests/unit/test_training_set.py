"""A training set from tables: order, weights, duplicates, merges, removals, the catalogue."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.erasure.erased import Boundary, Entry, Erased, Salt
from app.errors import BundleError, MantaError
from app.event_weights import by_type
from app.events.columns import EVENT_COLUMNS as EVENT_SCHEMA
from app.lake.tables import ARRIVED
from app.settings import LearnSettings, Settings
from app.state.memory import MemoryState
from app.time_to_live import DAY_MS
from tune.dataset import EVENT_COLUMNS, TrainingSet, counted, item_columns, rows_of, training_set
from tune.package import recent_users, write_without_erased

WEIGHTS = by_type(rating=1.0, click=0.5, view=0.0)
ITEMS = pa.table(
    {
        "item_id": ["c", "a", "b", "gone", "never"],
        "available": [True, True, True, False, False],
        "columns": [json.dumps({"year": 1990}), json.dumps({"genres": ["Drama"], "year": 2001}), "{}", "{}", "{}"],
    }
)


def made(*rows: tuple[Any, ...], items: pa.Table = ITEMS, ttl_ms: int | None = None) -> TrainingSet:
    """Rows of (user, session, item, type, second, partition, offset)."""
    names = [name for name in EVENT_COLUMNS if name != "value"]
    types = (*[pa.string()] * 4, pa.timestamp("us", "UTC"), pa.int32(), pa.int64())
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    columns[4:5] = [tuple(second * 1_000_000 for second in columns[4])]
    table = pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})
    table = table.append_column("value", pa.nulls(len(table), pa.float64()))
    return training_set(counted(table, WEIGHTS), items, "s", weights=WEIGHTS, gap_s=1800.0, ttl_ms=ttl_ms)


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


def test_events_of_a_clock_that_is_years_ahead_are_not_learnt_from(tmp_path: Path) -> None:
    day, file = 86_400_000_000, str(tmp_path / "part.parquet")
    held = EVENT_SCHEMA.append(ARRIVED)
    times = ((0, 9 * day), (10 * day, 9 * day + 1), (11 * day, 9 * day), (99 * day, None))
    rows = [
        {"user_id": "u", "item_id": str(place), "event_time": time, "arrival_time": arrived}
        for place, (time, arrived) in enumerate(times)
    ]
    pq.write_table(pa.Table.from_pylist(rows, held), file)
    found = rows_of(file)
    assert found["item_id"].to_pylist() == ["0", "1", "3"]
    assert found.column_names == list(EVENT_COLUMNS)
    pq.write_table(pa.Table.from_pylist(rows, EVENT_SCHEMA), file)  # from before there were arrivals
    assert rows_of(file)["item_id"].to_pylist() == ["0", "1", "2", "3"]


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
    whole = found.interactions
    assert whole.kinds is not None
    assert [whole.kind_names[kind] for kind in whole.kinds.tolist()] == ["click", "rating"]
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


def test_of_merges_at_one_time_the_first_user_has_the_session_wherever_they_stand() -> None:
    found = made(
        (None, "s", "a", "rating", 1, 0, 0),
        ("v", "s", None, "merge", 2, 0, 1),
        ("u", "s", None, "merge", 2, 1, 1),
        ("w", "s", None, "merge", 3, 0, 2),
    )
    assert events_of(found) == [("u", "a")]


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


def test_columns_of_vectors_take_no_more_than_they_need() -> None:
    rows: list[dict[str, Any]] = [
        {"p": [0.5, 1.0], "q": [0.1, 1.0], "r": [1e300, 0.0]},
        {"p": [0.25], "q": [], "r": None},
        {"p": None},
    ]
    table = item_columns([json.dumps(row) for row in rows])
    assert [str(table.schema.field(name).type.value_type) for name in "pqr"] == ["float", "double", "double"]
    assert table.to_pylist() == [dict.fromkeys("pqr") | row for row in rows]
    assert item_columns(['{"p": [0.5]}', '{"p": "text"}']).column("p").to_pylist() == ["[0.5]", '"text"']
    hashes = set()
    for vector in ([1.0, 0.0], [0.0, 1.0], [0.0, 1.0, 0.0]):
        items = ITEMS.set_column(2, "columns", [[json.dumps({"picture": vector})] * len(ITEMS)])
        hashes.add(made(("u", None, "a", "rating", 1, 0, 0), items=items).data_hash)
    assert len(hashes) == 3


@pytest.mark.parametrize("ttl_days", [None, 0.5, 3.0])
def test_a_case_sees_the_history_that_serving_would_have_shown_at_its_time(ttl_days: float | None) -> None:
    draw = random.Random(3)
    seconds = sorted(draw.randrange(10 * 86_400) for _ in range(80))
    rows = [
        (draw.choice("uvw"), None, draw.choice("abc"), "click", at, place % 3, place)
        for place, at in enumerate([0, 5, 43_205, *seconds])
    ]
    found = made(*rows, ttl_ms=None if ttl_days is None else int(ttl_days * DAY_MS))
    whole = found.interactions
    seen = whole.histories_before(np.arange(len(whole)))
    for case, end in enumerate(seen.offsets[1:]):
        state = MemoryState(Settings.model_validate({"state": {"ttl_days": ttl_days}}))
        for earlier in range(case):
            user, item = found.user_ids[whole.users[earlier]], found.catalogue.item_ids[whole.items[earlier]]
            state.add(user, item, time_ms=int(whole.times[earlier]))
        state.add("another", "a", time_ms=int(whole.times[case]))  # the watermark is the time of the case
        (shown,) = state.histories([("user", found.user_ids[whole.users[case]])])
        learned = seen.items[seen.offsets[case] : end]
        assert [found.catalogue.item_ids[row] for row in learned] == list(shown.item_ids)
        assert seen.as_of[case] == whole.times[case]
    last = whole.histories()
    oldest = -np.inf if ttl_days is None else whole.end - ttl_days * DAY_MS
    assert len(last.items) == sum(whole.times >= oldest)
    assert (last.times >= oldest).all()
    assert np.bincount(whole.users[whole.times >= oldest], minlength=3).tolist() == last.lengths.tolist()
    assert whole.first(20).ttl_ms == whole.ttl_ms


def test_lists_are_for_the_newest_users_and_for_nobody_who_was_erased() -> None:
    """A sweep that began before the erasure has read the user's events."""
    found = made(
        ("old", None, "a", "rating", 1, 0, 0),
        ("gone", None, "a", "rating", 9, 0, 1),
        (None, "visitor", "a", "rating", 7, 0, 2),
        ("new", None, "b", "rating", 5, 0, 3),
        ("old", None, "b", "rating", 2, 0, 4),
    )
    salt = Salt(b"salt")
    erased = Erased(salt, [Entry(frozenset({salt.key("user", "gone")}), Boundary(0, {}))])
    assert [found.user_ids[user] for user in recent_users(found, erased)] == ["new", "old"]


def test_a_bundle_is_written_again_where_somebody_was_erased_meanwhile(tmp_path: Path) -> None:
    salt = Salt(b"salt")
    entries: list[Entry] = []
    written: list[int] = []

    def write(erased: Erased) -> str:
        written.append(erased.version)
        if len(written) < 3:
            entries.append(Entry(frozenset({salt.key("user", f"u{len(written)}")}), Boundary(0, {})))
        if len(written) == 2:
            raise BundleError("an erasure has removed what was half written")
        (tmp_path / f"b{len(written)}").mkdir()
        return f"b{len(written)}"

    assert write_without_erased(write, lambda: Erased(salt, entries), tmp_path) == "b3"
    assert len(set(written)) == 3
    assert [folder.name for folder in tmp_path.iterdir()] == ["b3"]
    with pytest.raises(OSError, match="no room"):
        write_without_erased(lambda _: _fails(), lambda: Erased(salt, entries), tmp_path)


def _fails() -> str:
    raise OSError("no room")
