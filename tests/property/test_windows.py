"""Windows over batches against their plain definition, row by row: whatever the cut, the order and the streams."""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.events.columns import MICROS
from app.events.windows import Hopping, Session, Sliding, WindowFold, Windows, tumbling

Row = tuple[str | None, int, int, int]  # key, time, value, stream
Result = tuple[str | None, int, int, int, int]  # key, start, end, count, sum

rows = st.lists(
    st.tuples(st.sampled_from(["a", "b", None]), st.integers(-40, 60), st.integers(-3, 9), st.integers(0, 2)),
    max_size=40,
)
kinds = st.one_of(
    st.integers(1, 20).map(tumbling),
    st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda s: s[1] <= s[0]).map(lambda s: Hopping(*s)),
    st.integers(1, 20).map(Sliding),
    st.integers(0, 15).map(Session),
)
cuts = st.lists(st.integers(0, 40), max_size=6)


@dataclass(frozen=True)
class Told:
    """What a fold says of some rows."""

    results: list[Result]
    late: int


def table(found: list[Row]) -> pa.Table:
    keys, times, values, streams = zip(*found, strict=True) if found else ((), (), (), ())
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "event_time": pa.array(times, pa.int64()).cast(MICROS),
            "value": pa.array(values, pa.int64()),
            "stream": pa.array(streams, pa.int32()),
        }
    )


def results_of(found: pa.Table) -> list[Result]:
    if not found.num_columns:
        return []
    micros = [found[name].cast(pa.int64()).to_pylist() for name in ("start", "end")]
    columns = [found["key"].to_pylist(), *micros, found["count"].to_pylist(), found["value"].to_pylist()]
    return list(zip(*columns, strict=True))


def folded(found: list[Row], windows: Windows, lateness: int, at: list[int] | None = None) -> Told:
    """Batch by batch, cut at the places `at`; whatever closes on the way is taken out at once."""
    fold = WindowFold(
        windows, ["key"], ["value"], stream="stream", streams=sorted({row[3] for row in found}),
        allowed_lateness_us=lateness,
    )  # fmt: skip
    places = [0, *sorted(at or []), len(found)]
    results: list[Result] = []
    for begin, end in pairwise(places):
        fold.add(table(found[begin:end]))
        results += results_of(fold.closed())
    return Told(sorted(results + results_of(fold.finish()), key=repr), fold.late)


def plain(found: list[Row], windows: Windows, lateness: int) -> Told:
    """The definition."""
    highest: dict[int, int] = {}
    accepted: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
    late = 0
    for key, time, value, stream in found:
        if time < highest.get(stream, time) - lateness:
            late += 1
        else:
            accepted[key].append((time, value))
        highest[stream] = max(time, highest.get(stream, time))
    results = [(key, *one) for key, points in accepted.items() for one in _windows(sorted(points), windows)]
    return Told(sorted(results, key=repr), late)


def _windows(points: list[tuple[int, int]], windows: Windows) -> list[tuple[int, int, int, int]]:
    spans: set[tuple[int, int]] = set()
    if isinstance(windows, Session):
        begin = points[0][0]
        for (time, _), (after, _) in pairwise(points):
            if after - time > windows.gap_us:
                spans.add((begin, time + windows.gap_us))
                begin = after
        spans.add((begin, points[-1][0] + windows.gap_us))
        inside = {span: [p for p in points if span[0] <= p[0] <= span[1]] for span in spans}
    elif isinstance(windows, Sliding):
        spans = {(time - windows.size_us, time) for time, _ in points}
        inside = {span: [p for p in points if span[0] < p[0] <= span[1]] for span in spans}
    else:
        begins = range(-100, 100)
        spans = {(b, b + windows.size_us) for b in begins if b % windows.step_us == 0}
        inside = {span: [p for p in points if span[0] <= p[0] < span[1]] for span in spans}
    return [(*span, len(held), sum(value for _, value in held)) for span, held in inside.items() if held]


@settings(max_examples=200, deadline=None)
@given(rows, kinds, st.integers(0, 80), cuts)
def test_batches_give_what_the_definition_gives(
    found: list[Row], windows: Windows, lateness: int, at: list[int]
) -> None:
    assert folded(found, windows, lateness, [place for place in at if place < len(found)]) == plain(
        found, windows, lateness
    )


@settings(max_examples=200, deadline=None)
@given(rows, kinds, st.data(), cuts)
def test_any_order_within_the_allowance_is_as_good_as_sorted(
    found: list[Row], windows: Windows, data: st.DataObject, at: list[int]
) -> None:
    lateness = data.draw(st.integers(0, 30))
    delays = data.draw(st.lists(st.integers(0, lateness), min_size=len(found), max_size=len(found)))
    arrival = sorted(zip(found, delays, strict=True), key=lambda pair: pair[0][1] + pair[1])
    arrived = [row for row, _ in arrival]
    told = folded(arrived, windows, lateness, [place for place in at if place < len(found)])
    assert told == folded(sorted(found, key=lambda row: row[1]), windows, lateness)
    assert told.late == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.floats(-1e16, 1e16, allow_subnormal=False)), max_size=40
    ),
    st.integers(1, 20),
    cuts,
)
@example([("a", 0, 1e16), ("a", 9, 0.5), ("b", 9, 0.25)], 5, [])
def test_sliding_sums_of_floats_know_nothing_of_what_lies_outside(
    found: list[tuple[str, int, float]], size: int, at: list[int]
) -> None:
    """Neither of other keys nor of what has left the window, in one batch as in many."""
    made = pa.table(
        {
            "key": pa.array([key for key, _, _ in found], pa.string()),
            "event_time": pa.array([time for _, time, _ in found], pa.int64()).cast(MICROS),
            "value": pa.array([value for _, _, value in found], pa.float64()),
        }
    )
    for edges in ([0, len(found)], sorted({0, *at, len(found)})):
        fold = WindowFold(Sliding(size), ["key"], ["value"], allowed_lateness_us=100)
        parts = []
        for start, end in pairwise(edges):
            fold.add(made.slice(start, end - start))
            parts.append(fold.closed())
        parts.append(fold.finish())
        for row in (row for part in parts if part.num_columns for row in part.to_pylist()):
            end = int(row["end"].timestamp() * 1e6 + 0.5)
            within = [value for key, time, value in found if key == row["key"] and end - size < time <= end]
            assert row["count"] == len(within)
            assert abs(row["value"] - math.fsum(within)) <= 1e-14 * math.fsum(map(abs, within))


@pytest.mark.parametrize("windows", [tumbling(10), Hopping(20, 10), Sliding(10), Session(4)], ids=str)
def test_what_is_closed_stays_closed_and_late_rows_are_counted(windows: Windows) -> None:
    fold = WindowFold(windows, ["key"], ["value"], stream="stream", allowed_lateness_us=5)
    fold.add(table([("a", 3, 1, 0), ("a", 40, 1, 0)]))
    closed = results_of(fold.closed())
    assert closed
    assert {count for _, _, _, count, _ in closed} == {1}
    assert results_of(fold.closed()) == []
    fold.add(table([("a", 3, 1, 0), ("a", 3, 1, 7), ("a", 36, 1, 0)]))  # too late on its stream and on a new one
    assert fold.late == 2
    assert sum(one[3] for one in results_of(fold.standing())) >= 2
    assert not set(closed) & set(results_of(fold.finish()))


@pytest.mark.parametrize("windows", [tumbling(10), Hopping(20, 10), Sliding(10), Session(4)], ids=str)
def test_a_stream_that_nobody_expected_opens_nothing_that_is_closed(windows: Windows) -> None:
    fold = WindowFold(windows, ["key"], ["value"], stream="stream")
    fold.add(table([("a", 3, 1, 0), ("a", 6, 1, 0), ("a", 40, 1, 0)]))
    closed = results_of(fold.closed())
    assert closed
    fold.add(table([("a", 1, 1, 1)]))
    assert results_of(fold.closed()) == []
    fold.add(table([("a", 4, 1, 1), ("a", 45, 1, 1), ("a", 80, 1, 0), ("a", 80, 1, 1)]))
    assert fold.late == 2
    more = results_of(fold.closed()) + results_of(fold.finish())
    assert not {one[:3] for one in closed} & {one[:3] for one in more}


def test_one_silent_stream_holds_windows_open_until_it_is_lifted() -> None:
    fold = WindowFold(tumbling(10), ["key"], stream="stream", streams=(0, 1))
    fold.add(table([("a", 3, 0, 0), ("a", 25, 0, 0)]))
    assert len(fold.closed()) == 0
    fold.watermarks.lift(1, 25)
    assert fold.closed()["count"].to_pylist() == [1]
