"""Event weights: columns as single events, training as the state, whenever and in whatever order events arrive."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import MantaError
from app.event_weights import FLOAT_MAX, EventWeight
from app.events.schema import MERGE, REMOVE
from app.lake.tables import TABLES
from app.settings import Settings
from app.state.batch import Batch, StateEvent
from app.state.memory import MemoryState
from app.weighing import NEVER, dwell_s, next_times, weigh, weights_of
from tests.property.test_state import log
from tune.dataset import EVENT_COLUMNS, TrainingSet, counted, training_set

GAP_S = 6.0
S = 1_000_000  # microseconds


def scaled() -> st.SearchStrategy[EventWeight]:
    number = st.floats(0, 50, width=32)

    def made(weight: float, scale: str, low: float | None, more: float | None, missing: float | None, s: str) -> object:
        given = {"weight": weight, scale: True, "min" + s: low, "cap" + s: None if more is None else (low or 0) + more}
        return EventWeight.model_validate({**given, "missing": missing})

    scale, unit = st.sampled_from(["log1p", "linear"]), st.sampled_from(["", "_s"])
    return st.builds(made, number, scale, st.none() | number, st.none() | number, st.none() | number, unit)  # type: ignore[arg-type]


any_weight = st.floats(0, 1e30).map(lambda w: EventWeight(weight=w)) | scaled() | st.just(EventWeight(min_s=3.0))
any_value = st.just(float("nan")) | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1, 60, width=32)


@settings(deadline=None)
@given(
    weights=st.fixed_dictionaries({"click": any_weight, "view": any_weight}),
    rows=st.lists(
        st.tuples(st.sampled_from("uv"), st.sampled_from(["click", "view", "odd"]), any_value, st.integers(0, 9))
    ),
)
def test_columns_weigh_what_single_events_weigh(
    weights: dict[str, EventWeight], rows: list[tuple[str, str, float, int]]
) -> None:
    rows = sorted(rows, key=lambda row: row[3])
    owners = np.array([ord(row[0]) for row in rows], np.int64)
    times = np.array([row[3] * 1000 for row in rows], np.int64)
    kinds = ["odd", "view", "click"]
    codes = np.array([kinds.index(row[1]) for row in rows], np.int64)
    found = weigh(weights, kinds, codes, np.array([row[2] for row in rows], np.float64), owners, times, GAP_S)
    for place, (user, kind, value, second) in enumerate(rows):
        later = next((row[3] for row in rows[place + 1 :] if row[0] == user), None)
        one = weights.get(kind, EventWeight(weight=0.0))
        seconds = float("nan") if later is None or later - second > GAP_S else float(later - second)
        known = seconds if np.isnan(value) and one.of_dwell else value
        assert found.final[place] == np.float32(one.of(known))
        assert found.before[place] == np.float32(one.of(value))
        assert 0 <= found.final[place] <= FLOAT_MAX
    if rows:
        dwell = dwell_s(times, next_times(owners, times), GAP_S)
        kept = np.array([row[2] for row in rows]).clip(-FLOAT_MAX, FLOAT_MAX).astype(np.float32)  # as a history has it
        assert weights_of(weights, kinds, codes, kept, lambda: dwell).tolist() == found.final.tolist()
        assert np.isnan(dwell_s(times, np.full(len(rows), NEVER), GAP_S)).all()


def view(**more: object) -> EventWeight:
    return EventWeight.model_validate({"log1p": True, "min_s": 3, "cap_s": 300, **more})


def test_the_example_by_hand() -> None:
    assert [round(view().of(value), 4) for value in (2.9, 3, 20, 300, 9000, float("nan"))] == [
        0,
        round(np.log(4), 4),
        round(np.log(21), 4),
        round(np.log(301), 4),
        round(np.log(301), 4),
        1,
    ]
    assert view(weight=2, missing=0.25).of(float("nan")) == 0.25
    assert EventWeight(min=4).of(3.5) == 0
    assert EventWeight(min=4, weight=2).of(5) == 2
    assert EventWeight(linear=True).of(-3) == 0


# --- state and training

LEARNT = st.sampled_from(
    [
        {"view": view(), "click": EventWeight(weight=2.0)},
        {"view": view(missing=0), "rating": EventWeight(linear=True, min=1.0)},
        {"view": view(missing=7, min_s=0), "click": EventWeight(min_s=2.0)},
    ]
)
wishes: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {
        "user": st.none() | st.sampled_from("ab"),
        "session": st.none() | st.sampled_from("ab"),
        "item": st.sampled_from("xyz"),
        "kind": st.sampled_from(
            ["view", "view", "view", "click", "rating", "other", REMOVE, "impression", "search", MERGE]
        ),
        "time": st.integers(0, 30).map(lambda at: 2 * at),  # several at one time
        "event_id": st.none(),
        "hours": st.just(0),
        "value": st.sampled_from([float("nan"), float("nan"), 1.5, 40.0]),
    }
)


def apart(wish: dict[str, object]) -> dict[str, object]:
    """A removal stands at a time at which nothing else does."""
    return wish | {"time": int(str(wish["time"])) + 1} if wish["kind"] == REMOVE else wish


def learnt(
    events: Sequence[StateEvent], weights: dict[str, EventWeight], ttl_ms: int | None = None
) -> TrainingSet | None:
    """None: no event counts."""
    rows = [
        {
            "user_id": event.user_id,
            "session_id": event.session_id,
            "item_id": event.item_id,
            "event_type": event.event_type,
            "event_time": event.time,
            "value": None if np.isnan(event.value) else event.value,
            "partition": event.partition,
            "offset": event.offset,
        }
        for event in events
    ]
    schema = pa.schema([pa.field(name, TABLES["events"].field(name).type) for name in EVENT_COLUMNS])
    table = counted(pa.Table.from_pylist(rows, schema), weights)
    items = TABLES["items"].empty_table()
    try:
        return training_set(table, items, "now", weights=weights, gap_s=GAP_S, ttl_ms=ttl_ms)
    except MantaError:
        return None


def shown(state: MemoryState, kind: str, name: str, weights: dict[str, EventWeight]) -> list[tuple[str, float]]:
    (history,) = state.histories([(kind, name)])  # type: ignore[list-item]
    found = zip(history.item_ids, history.weights(weights, GAP_S).tolist(), strict=True)
    return [(item, weight) for item, weight in found if weight > 0]


@settings(deadline=None, max_examples=60)
@given(drawn=st.lists(wishes.map(apart), max_size=14), weights=LEARNT, arrival=st.randoms(use_true_random=False))
def test_training_has_the_weights_that_the_state_has_whatever_has_arrived(
    drawn: list[dict[str, object]], weights: dict[str, EventWeight], arrival: object
) -> None:
    events = log(drawn, S)
    late = list(events)
    arrival.shuffle(late)  # type: ignore[attr-defined]
    state = MemoryState(Settings())
    for start, end in pairwise([*range(0, len(late), 5), len(late)]):
        state.apply(Batch(events=late[start:end]))
        found = learnt(late[:end], weights)
        for kind in ("user", "session"):
            for name in "ab":
                if kind == "session" and state.merged_into(name) is not None:
                    continue  # its events are learnt from as the user's, once
                wanted = shown(state, kind, name, weights)
                assert wanted == ([] if found is None else trained(found, kind, name))


def trained(found: TrainingSet, kind: str, name: str) -> list[tuple[str, float]]:
    whole, ids = found.interactions, found.catalogue.item_ids
    mine = [
        user
        for user, (user_id, session) in enumerate(zip(found.user_ids, found.sessions.tolist(), strict=True))
        if (user_id, session) == (name, kind == "session")
    ]
    rows = np.flatnonzero(np.isin(whole.users, mine))
    return [(ids[whole.items[row]], float(whole.weights[row])) for row in rows]


@settings(deadline=None, max_examples=60)
@given(
    drawn=st.lists(
        wishes.filter(lambda wish: wish["kind"] not in (MERGE, REMOVE) and wish["user"] is not None),
        min_size=1,
        max_size=12,
    ),
    weights=LEARNT,
    ttl_s=st.sampled_from([None, 5, 20]),
)
def test_a_case_has_the_weights_that_were_known_before_its_event(
    drawn: list[dict[str, object]], weights: dict[str, EventWeight], ttl_s: int | None
) -> None:
    events = sorted(log(drawn, S), key=lambda event: (event.time, event.partition, event.offset))
    ttl = None if ttl_s is None else ttl_s * 1000
    found = learnt(events, weights, ttl)
    if found is None:
        return
    whole, ids = found.interactions, found.catalogue.item_ids
    seen = whole.histories_before(np.arange(len(whole)))
    cases = [event for event in events if event.entry is not None and stands(event, found, weights, events)]
    assert len(cases) == len(whole)
    for case, event in enumerate(cases):
        state = MemoryState(Settings.model_validate({"state": {"ttl_days": None if ttl_s is None else ttl_s / 86_400}}))
        state.apply(Batch(events=events[: events.index(event)]))
        state.add("nobody", "x", time_ms=event.time // 1000)  # the watermark is the time of the case
        part = slice(seen.offsets[case], seen.offsets[case + 1])
        given = [ids[row] for row in seen.items[part]]
        assert list(zip(given, seen.weights[part].tolist(), strict=True)) == shown(
            state, "user", event.user_id or "", weights
        )
    turned = np.arange(whole.n_items, dtype=np.int32)[::-1] + 5  # rows of another catalogue
    there = whole.translated(turned, whole.n_items + 5).histories_before(np.arange(len(whole)))
    assert there.items.tolist() == turned[seen.items].tolist()
    assert there.weights.tolist() == seen.weights.tolist()
    cut = len(whole) // 2
    early = whole.first(cut)
    kept = early.histories_before(np.arange(cut))
    for name in ("items", "weights", "times"):
        assert getattr(kept, name).tolist() == getattr(seen, name)[: seen.offsets[cut]].tolist()


def stands(
    event: StateEvent, found: TrainingSet, weights: dict[str, EventWeight], events: Sequence[StateEvent]
) -> bool:
    """Whether an event has a weight once everything has come: found by its own history, not by the training set."""
    state = MemoryState(Settings())
    state.apply(Batch(events=events))
    (history,) = state.histories([("user", event.user_id or "")])
    mine = [other for other in events if other.user_id == event.user_id and other.entry is not None]
    return bool(history.weights(weights, GAP_S)[mine.index(event)] > 0)
