"""What serving saw, through the message, into training rows: the very numbers, with labels from the events."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.chain.request import Answer, Request, Seen
from app.chain.sample import Sample
from app.events.columns import EVENT_COLUMNS, RECORDS
from app.events.impressions import decode_impressions
from app.ranking.logged import LoggedRows, logged_rows
from app.recommend import recommend_now
from app.surfaces import SurfaceSettings
from deployments.impressions import message
from tests.unit.chain_world import DAY_MS, World, answered

NOW = 1_700_000_000_000_000
MINUTE = 60_000_000


@pytest.fixture(scope="module")
def world() -> World:
    made = World(seen_of=Sample(1.0))
    made.click("one", "i5", start_ms=30 * DAY_MS)
    made.click("some", "i1", "i9", "i13", "i5", start_ms=30 * DAY_MS)
    return made


def asked(world: World, *users: str, **more: Any) -> list[tuple[Request, Answer]]:
    requests = [Request(user_id=user, request_id=f"r-{user}", k=5, **more) for user in users]
    return list(zip(requests, map(answered, recommend_now(world.chain, requests)), strict=True))


def as_lake(found: list[tuple[Request, Answer]]) -> pa.Table:
    rows = [
        {"partition": 0, "offset": place, "record_time": NOW // 1000, "key": key, "value": value}
        for place, (key, value) in enumerate(message(*one, NOW) for one in found)
    ]
    decoded = decode_impressions("impressions", pa.Table.from_pylist(rows, RECORDS), 600.0)
    assert not len(decoded.rejected)
    return decoded.events


def event(request: str, item: str, after: int, kind: str = "click") -> dict[str, Any]:
    return {"request_id": request, "item_id": item, "event_type": kind, "event_time": NOW + after}


def rows_of(impressions: pa.Table, events: list[dict[str, Any]], **more: Any) -> LoggedRows:
    table = pa.Table.from_pylist(events, EVENT_COLUMNS)
    return logged_rows(
        impressions, table, objectives={"click": ["click"], "look": ["look"]}, attribution_us=10 * MINUTE, **more
    )


def test_training_rows_are_what_serving_computed(world: World) -> None:
    found = asked(world, "one", "some", "stranger")
    first, second, _ = (answer for _, answer in found)
    impressions = as_lake([*found, found[0]])  # one was sent twice
    clicked = [first.items[2].item_id, second.items[0].item_id]
    rows = rows_of(
        impressions,
        [
            event("r-one", clicked[0], MINUTE),
            event("r-one", clicked[0], 2 * MINUTE),
            event("r-some", clicked[1], MINUTE),
            event("r-some", second.items[1].item_id, 11 * MINUTE),  # too late
            event("r-some", second.items[2].item_id, MINUTE, "look"),
            event("r-one", "never shown", MINUTE),
        ],
    )
    assert rows.requests == ["r-one", "r-some", "r-stranger"]
    assert rows.offsets.tolist() == [0, 5, 10, 15]
    ranker = world.bundle.ranker
    assert ranker is not None
    assert rows.names == ranker.feature_names
    shown = [item for _, answer in found for item in answer.items]
    assert ranker.score(rows.features).tolist() == [item.score for item in shown]
    for place, (_, answer) in enumerate(found):
        assert answer.seen is not None
        assert np.array_equal(rows.features[5 * place : 5 * place + 5], answer.seen.values)
    assert rows.position.tolist() == [1, 2, 3, 4, 5] * 3
    assert rows.propensity.tolist() == [1.0] * 15
    assert np.flatnonzero(rows.labels[:, 0]).tolist() == [2, 5]
    assert np.flatnonzero(rows.labels[:, 1]).tolist() == [7]
    turned = rows.examples(rows.names[::-1])
    assert np.array_equal(turned.features, rows.features[:, ::-1])
    assert (turned.objectives, turned.targets.tolist()) == (("click", "look"), [2, 0, -1])
    assert turned.positions.tolist() == rows.position.tolist()


def test_other_specs_and_posted_surfaces(world: World) -> None:
    found = asked(world, "one", "some")
    impressions = as_lake(found)
    ids = [item.item_id for item in found[0][1].items]
    posted = [event("r-one", ids[1], MINUTE, "impression"), event("r-one", ids[1], MINUTE), event("r-one", ids[0], 1)]
    rows = rows_of(impressions, posted, posted_surfaces=["home"])
    assert (rows.position.tolist(), rows.labels.tolist(), rows.offsets.tolist()) == ([2], [[1, 0]], [0, 1, 1])
    assert len(rows_of(impressions, [], names=("another",)).labels) == 0
    assert rows_of(impressions, [], names=("another",)).left_out == 2
    assert rows_of(impressions.slice(0, 0), []).requests == []


def test_only_the_sample_and_only_what_was_ranked(world: World) -> None:
    silent = World(world.bundle)
    assert asked(silent, "one")[0][1].seen is None
    sparse = World(world.bundle, seen_of=Sample(0.5))
    taken = {request.request_id for request, answer in asked(sparse, *map(str, range(40))) if answer.seen is not None}
    assert 8 < len(taken) < 32
    assert all(Sample(0.5).takes(request_id) for request_id in taken)
    unranked = World(world.bundle, SurfaceSettings(ranked=False), seen_of=Sample(1.0))
    assert asked(unranked, "one")[0][1].seen is None
    impressions = as_lake([(Request(user_id="u"), found) for _, found in asked(unranked, "one")])
    assert impressions["features"].null_count == 1


def test_an_impression_is_not_lost_for_features_that_no_broker_would_take(world: World) -> None:
    ((request, answer),) = asked(world, "one")
    huge = Seen(tuple(map(str, range(20_000))), np.full((5, 20_000), 0.1, np.float32))
    impressions = as_lake([(request, replace(answer, seen=huge))])
    assert impressions["features"].null_count == 1
    assert len(impressions["items"][0]) == 5
