"""Impressions by columns and one by one: judged alike, whatever the message."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import impressions
from app.events.columns import RECORDS, REJECTED, Decoded
from app.events.impressions import IMPRESSION_COLUMNS, decode_impressions, judge_impressions

FUTURE_S = 600.0


def records(values: Sequence[bytes | None]) -> pa.Table:
    rows = [
        {"partition": 3, "offset": place, "record_time": 1_700_000_000_000, "key": b"k", "value": value}
        for place, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, RECORDS)


def one_by_one(table: pa.Table) -> Decoded:
    accepted, _, rejected = judge_impressions("impressions", table, FUTURE_S)
    return Decoded(pa.Table.from_pylist(accepted, IMPRESSION_COLUMNS), pa.Table.from_pylist(rejected, REJECTED))


def shown(**fields: Any) -> dict[str, Any]:
    return {"item_id": "1", "position": 1, **fields}


def answer(**fields: Any) -> dict[str, Any]:
    return {"request_id": "r", "surface": "home", "time": "2023-01-02T03:04:05.5Z", "items": [shown()], **fields}


TWO = [shown(score=0.5, propensity=1, sources=["ease", "item_knn"]), shown(item_id="ü", position=2, score=None)]
GOOD: list[dict[str, Any]] = [
    answer(),
    answer(items=TWO, variant="champion", bundle="b", user_id="u", session_id="s", schema_version=1),
    answer(items=[], degraded="popular"),
    answer(items=[shown(sources=[]), shown(sources=None, slot=3)], context={"device": "mobile"}, page=None),
    answer(items=TWO, feature_names=["a", "b"], features=[[0.1, 3], [1e-30, -2.5]]),
    answer(time="2016-12-31T23:59:60Z", context=None),
    answer(time="2023-11-14T22:23:20Z"),  # as far ahead of arrival as may be
    answer(items=[], feature_names=["a"], features=[]),
    answer(items=TWO, feature_names=[], features=[[], []], note='a "quoted" note'),
]
BAD: list[tuple[bytes, str]] = [
    (b"[]", "type"),
    (b"{}", "missing"),
    (b'{"request_id": NaN}', "json"),
    (json.dumps(answer(items=None)).encode(), "type"),
    (json.dumps(answer(items=[None])).encode(), "type"),
    (json.dumps(answer(items=[shown(item_id="")])).encode(), "range"),
    (json.dumps(answer(items=[shown(position=0)])).encode(), "range"),
    (json.dumps(answer(items=[shown(position=2**31)])).encode(), "range"),
    (json.dumps(answer(items=[shown(sources=[None])])).encode(), "type"),
    (json.dumps(answer(items=[shown(sources="ease")])).encode(), "type"),
    (json.dumps(answer(time="yesterday")).encode(), "range"),
    (json.dumps(answer(time="2023-11-14T22:23:21Z")).encode(), "future"),  # a second too far ahead
    (json.dumps(answer(surface="x" * 129)).encode(), "range"),
    (json.dumps(answer(context=[1])).encode(), "type"),
    (json.dumps(answer(schema_version=0)).encode(), "range"),
    (json.dumps(answer(schema_version="2")).encode(), "version"),
    (json.dumps(answer(feature_names=["a"], features=[])).encode(), "range"),
    (json.dumps(answer(feature_names=["a"], features=[[1.0, 2.0]])).encode(), "range"),
    (json.dumps(answer(feature_names=["a"], features=[[1e39]])).encode(), "range"),
    (json.dumps(answer(feature_names=["a"], features=[[None]])).encode(), "type"),
    (json.dumps(answer(features=[[1.0]])).encode(), "range"),
]


def test_good_ones_are_accepted_by_the_columns_as_one_by_one() -> None:
    table = records([json.dumps(fields, ensure_ascii=False).encode() for fields in GOOD])
    decoded = decode_impressions("impressions", table, FUTURE_S)
    assert decoded.rejected.num_rows == 0
    assert decoded.events.equals(one_by_one(table).events)
    assert decoded.events["offset"].to_pylist() == list(range(len(GOOD)))
    odd = records([json.dumps(answer(items=[shown(position="3")])).encode(), json.dumps(GOOD[1]).encode()])
    assert decode_impressions("impressions", odd, FUTURE_S).events.equals(
        one_by_one(odd).events
    )  # pydantic takes such text
    assert decoded.events["features"][4].as_py() == [[pytest.approx(0.1), 3.0], [pytest.approx(1e-30), -2.5]]


@pytest.mark.parametrize(("value", "code"), BAD)
def test_a_bad_one_is_named_and_harms_no_other(value: bytes, code: str) -> None:
    good = json.dumps(GOOD[1]).encode()
    table = records([good, value, good])
    decoded = decode_impressions("impressions", table, FUTURE_S)
    assert decoded.events["offset"].to_pylist() == [0, 2]
    assert decoded.rejected["reason"].to_pylist() == [code]
    assert decoded.rejected.equals(one_by_one(table).rejected)


def test_the_columns_take_what_a_gateway_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("judged one by one")

    monkeypatch.setattr(impressions, "judge_impressions", refuse)
    table = records([json.dumps(GOOD[place]).encode() for place in (0, 1, 2, 4)])
    found = decode_impressions("impressions", table, FUTURE_S)
    assert found.events.num_rows == 4


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**33),
    st.floats(),
    st.sampled_from(["u", "", "2023-01-02T03:04:05Z", "2", 'q"']),
    st.lists(st.one_of(st.none(), st.floats(-2, 2), st.text(max_size=2)), max_size=2),
    st.lists(st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
# Of the right type, so that the parser takes the batch, but not always of the right size or there.
TEXT = st.sampled_from(
    [None, "", "u", "x" * 129, 'q"', "2023-01-02T03:04:05Z", "2023-13-02T03:04:05Z", "2099-01-02T03:04:05Z"]
)
TYPED_ITEM = st.fixed_dictionaries(
    {},
    optional={
        "item_id": TEXT,
        "position": st.sampled_from([None, 0, 1, 7, 2**33]),
        "score": st.none() | st.floats(),
        "propensity": st.none() | st.floats(-1, 1),
        "sources": st.none() | st.lists(st.none() | st.text(max_size=2), max_size=2),
        "slot": st.integers() | st.text(max_size=2),
    },
)
TYPED = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(["request_id", "surface", "bundle", "user_id", "time", "degraded"], TEXT)
    | {
        "schema_version": st.sampled_from([None, 0, 1, 2]),
        "items": st.none() | st.lists(st.none() | TYPED_ITEM.map(lambda more: shown(**more)), max_size=3),
        "context": st.none() | st.dictionaries(st.text(max_size=3), st.integers(), max_size=1),
        "feature_names": st.none() | st.lists(st.none() | st.text(max_size=2), max_size=2),
        "features": st.none() | st.lists(st.none() | st.lists(st.none() | st.floats(), max_size=2), max_size=3),
        'other"': st.none() | st.integers(),
    },
)
ITEM = st.dictionaries(
    st.sampled_from(["item_id", "position", "score", "propensity", "sources", "slot"]), SCALARS, max_size=2
).map(lambda more: shown(**more))
KEYS = st.sampled_from([*IMPRESSION_COLUMNS.names[:10], "schema_version", "feature_names", "features", 'qu"ote'])
WHOLE = st.integers(0, 2).flatmap(
    lambda width: st.lists(st.floats(-4, 4), min_size=width, max_size=width).map(
        lambda row: {"feature_names": [f"f{n}" for n in range(width)], "features": [row, row]}
    )
)


ANY = st.builds(
    lambda items, more, whole: answer(**{"items": items} | whole | more),
    st.lists(ITEM, max_size=2),
    st.dictionaries(KEYS, SCALARS, max_size=2),
    st.one_of(st.just({}), WHOLE),
)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.lists(ANY, min_size=1, max_size=4),
        st.lists(st.builds(lambda more: answer(**more), TYPED), min_size=1, max_size=4),
    )
)
def test_whatever_comes_both_ways_agree(messages: list[dict[str, Any]]) -> None:
    table = records([json.dumps(one).encode() for one in messages])
    fast, slow = decode_impressions("impressions", table, FUTURE_S), one_by_one(table)
    assert fast.events.equals(slow.events)
    assert fast.rejected.equals(slow.rejected)
