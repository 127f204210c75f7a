"""Sweeps by segment, without Ray: which events are of which segment, jobs of many models, what is done again."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.errors import MantaError
from app.models.interactions import Catalogue, Interactions
from app.models.unsettled import Unsettled
from app.settings import Settings
from tune.dataset import EVENT_COLUMNS, training_set, user_marks
from tune.journal import Journal
from tune.pool import Job, Shape
from tune.segment_runner import Batch, SegmentRunner
from tune.segment_trials import SegmentJournal, SegmentTrials, best_by_segment
from tune.segments import SegmentedData, Segments, by_item, by_mark
from tune.space import parse_sweep
from tune.steering import SweepSearcher

SHAPE = Shape(1.0, 0.0)


def events(users: list[int], items: list[int]) -> Interactions:
    n = len(items)
    arrays = np.array(users, np.int32), np.array(items, np.int32), np.ones(n, np.float32), np.arange(n, dtype=np.int64)
    return Interactions(*arrays, n_users=9, n_items=9)


def listed(found: Segments) -> dict[str, list[int]]:
    ends = found.offsets.tolist()
    return {name: found.positions[ends[s] : ends[s + 1]].tolist() for s, name in enumerate(found.names)}


def test_events_are_of_the_segments_of_their_items() -> None:
    genres = pa.array([["a", "b", "a"], ["b"], None, [], ["c"], ["b", None], ["a"], ["a"], ["a"]])
    columns = pa.table({"genres": genres, "year": pa.array([1, 1, 2, 2, 1, 2, None, 1, 1])})
    catalogue = Catalogue.of([str(row) for row in range(9)], columns)
    whole = events([0] * 7, [1, 0, 2, 3, 5, 0, 4])
    assert listed(by_item(whole, catalogue, "genres", 5, 1)) == {"b": [0, 1, 4, 5], "a": [1, 5]}
    assert listed(by_item(whole, catalogue, "year", 5, 1)) == {"1": [0, 1, 5, 6]}
    assert by_item(whole, catalogue, "genres", 5, 1).left_out == 1  # c has nothing to fit on
    assert listed(by_item(whole, catalogue, "genres", 5, 1, ["a"])) == {"a": [1, 5]}
    with pytest.raises(MantaError, match=r"segment\.by: found 'genre', wanted a column of the items: genres, year"):
        by_item(whole, catalogue, "genre", 5, 1)
    with pytest.raises(MantaError, match="found 3 values, none with 4 events to fit on"):
        by_item(whole, catalogue, "genres", 5, 4)


def test_a_segment_knows_what_weighed_something_else_before_its_events_came() -> None:
    whole = events([3, 5, 3, 7, 3, 5, 5, 3], [8, 2, 8, 2, 4, 8, 6, 2])
    before = Unsettled(
        np.array([4, 5, 6, 7]),  # of the first the entry is in the segment, of the second nowhere by now
        np.array([2, -1, 5, 3]),
        np.array([8, 6, 8, 2], np.int32),
        np.full(4, 0.5, np.float32),
        np.arange(4),
    )
    segments = by_mark(pa.array(["x", "y", "x", None, "x", "x", "y", "x"]), 5, 1)
    catalogue = Catalogue.of([f"i{row}" for row in range(9)])
    cut = SegmentedData(replace(whole, unsettled=before), catalogue, segments, 5, 10, 50, 0).cut(0).interactions
    assert cut.unsettled is not None
    assert (cut.unsettled.by.tolist(), cut.unsettled.at.tolist(), cut.unsettled.items.tolist()) == ([2], [1], [2])
    history = cut.histories_before(np.array([2]))
    assert (history.items.tolist(), history.weights.tolist()) == ([2, 2], [1.0, 0.5])


def test_marks_make_segments_and_a_segment_is_a_small_data_set_of_its_own() -> None:
    whole = events([3, 5, 3, 7, 3, 5, 5, 3], [8, 2, 8, 2, 4, 8, 6, 2])
    segments = by_mark(pa.array(["x", "y", "x", None, "x", "x", "y", "x"]), 5, 1)
    assert listed(segments) == {"x": [0, 2, 4, 5, 7], "y": [1, 6]}
    catalogue = Catalogue.of([f"i{row}" for row in range(9)], pa.table({"c": list(range(9))}))
    cut = SegmentedData(whole, catalogue, segments, 5, 10, 50, 0).cut(0)
    assert cut.catalogue.item_ids == ["i2", "i4", "i8"]
    assert cut.catalogue.columns["c"].to_pylist() == [2, 4, 8]
    assert cut.interactions.users.tolist() == [0, 0, 0, 1, 0]
    assert cut.interactions.items.tolist() == [2, 2, 1, 2, 0]
    assert cut.interactions.times.tolist() == [0, 2, 4, 5, 7]
    assert (cut.n_fit, cut.cases.tolist()) == (3, [3, 4])
    assert len(SegmentedData(whole, catalogue, segments, 5, 1, 50, 0).cut(0).cases) == 1


def test_marks_of_events_and_of_users_are_read_beside_the_events() -> None:
    rows: list[dict[str, Any]] = [
        {"user_id": "u2", "item_id": "b", "surface": "home", "context": '{"device": "tv"}'},
        {"user_id": "u1", "item_id": "a", "surface": "mail", "context": None},
        {"session_id": "s9", "item_id": "a", "surface": None, "context": '{"device": ["tv"]}'},
        {"user_id": "u1", "item_id": "b", "surface": "home", "context": '{"device": 7}'},
    ]
    for place, row in enumerate(rows):
        time = datetime.fromtimestamp(1_700_000_000 - place, UTC)  # the last row came first
        row |= {"event_type": "click", "event_time": time, "partition": 0, "offset": place}
        row |= {name: row.get(name) for name in EVENT_COLUMNS}
    table = pa.Table.from_pylist(
        rows,
        pa.schema(
            [
                ("user_id", pa.string()),
                ("session_id", pa.string()),
                ("item_id", pa.string()),
                ("event_type", pa.string()),
                ("event_time", pa.timestamp("us", "UTC")),
                ("value", pa.float64()),
                ("partition", pa.int32()),
                ("offset", pa.int64()),
                ("surface", pa.string()),
                ("context", pa.string()),
            ]
        ),
    )
    items = pa.table({"item_id": ["a", "b"], "available": [True, True], "columns": ["{}", "{}"]})

    def marks(mark: str | None) -> Any:
        learn = Settings().learn
        found = training_set(table, items, "s", weights=learn.event_weights, gap_s=1800.0, event_mark=mark)
        if mark is None:
            users = pa.table({"user_id": ["u3", "u1"], "columns": ['{"country": "is"}', '{"country": "de"}']})
            found = user_marks(found, users, "country")
        assert found.marks is not None
        return found.marks.to_pylist()

    assert marks("surface") == ["home", None, "mail", "home"]
    assert marks("context.device") == ["7", None, None, "tv"]
    assert marks(None) == ["de", None, "de", None]


def trials(folder: Path, sizes: list[int], workers: int = 1, **more: Any) -> tuple[SegmentTrials, SegmentJournal]:
    families = {"ials": {"samples": 2, "defaults": False}}
    document = {"name": "s", "search": "random", "families": families, "segment": {"of": "items", "by": "c"}}
    sweep = parse_sweep(document | more, "s.yaml", Settings())
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    segments = Segments([f"s{n}" for n in range(len(sizes))], offsets, np.arange(offsets[-1]), 0)
    journal, results = Journal(folder / "trials.jsonl"), SegmentJournal(folder / "segments.jsonl")
    searcher = SweepSearcher(sweep, journal.finished)
    work = SegmentTrials(sweep, segments, journal, results, searcher, lambda _: SHAPE, workers, lambda: None)
    return work, results


def result(segment: int, value: float, cases: int = 10) -> dict[str, Any]:
    metrics = {"ndcg_at_10": value}
    found = {"segment": f"s{segment}", "number": segment, "cases": cases, "value": value, "metrics": metrics}
    return found | {"fit_s": 1.0, "evaluate_s": 0.5, "bytes": 10, "note": None}


def batch(job: Job | None) -> Batch:
    assert job is not None
    assert isinstance(job.load, Batch)
    return job.load


def test_jobs_hold_many_segments_and_a_trial_is_their_mean_by_cases(tmp_path: Path) -> None:
    work, results = trials(tmp_path, [90_000, 20_000, 900, 800, 700])
    sizes = list[int]()
    values: Mapping[int, tuple[float, int]] = {0: (0.4, 30), 1: (0.2, 10), 2: (0.1, 20), 3: (0.3, 20), 4: (0.0, 20)}
    while (job := work.take(SHAPE)) is not None:
        sizes.append(len(batch(job).segments))
        better = 0.05 * batch(job).configuration.number
        some = [result(one, values[one][0] + better * (one == 2), values[one][1]) for one in batch(job).segments]
        work.told(job, {"ends": True, "results": some})
    assert sizes == [1, 1, 3, 1, 1, 2, 1]  # towards the end jobs are smaller
    first, second = Journal(tmp_path / "trials.jsonl").finished
    assert first.value == pytest.approx((0.4 * 30 + 0.2 * 10 + 0.1 * 20 + 0.3 * 20) / 100)
    assert second.value == pytest.approx(float(first.value or 0) + 0.05 * 20 / 100)
    assert (first.state, first.fit_s, first.bytes) == ("done", 5.0, 50)
    best = best_by_segment(work._segments, results)
    assert [one["best"] for one in best] == ["ials-000", "ials-000", "ials-001", "ials-000", "ials-000"]
    assert not any(work.waiting().values())


def test_an_interrupted_sweep_fits_no_finished_model_again(tmp_path: Path) -> None:
    work, _ = trials(tmp_path, [5000, 4000, 3000], workers=1)
    job = work.take(SHAPE)
    assert batch(job).segments == (0,)
    assert job is not None
    work.told(job, {"ends": True, "results": [result(0, 0.5)]})
    with (tmp_path / "segments.jsonl").open("ab") as file:
        file.write(b'\n{"trial": "ials-000", "results": [{"segm')
    again, results = trials(tmp_path, [5000, 4000, 3000])
    done = list[tuple[int, int]]()
    while (found := again.take(SHAPE)) is not None:
        number = batch(found).configuration.number
        done += [(number, segment) for segment in batch(found).segments]
        again.told(found, {"ends": True, "results": [result(segment, 0.5) for segment in batch(found).segments]})
        if number == 0:
            assert batch(found).configuration.params == batch(job).configuration.params
    assert done == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert SegmentJournal(results.file).results == results.results


def test_segments_of_a_worker_that_died_are_done_again_one_by_one(tmp_path: Path) -> None:
    work, results = trials(tmp_path, [600, 500, 400])
    first = work.take(SHAPE)
    assert first is not None
    assert batch(first).segments == (0, 1, 2)
    work.died(first, "killed")
    for segment in range(3):
        job = work.take(SHAPE)
        assert job is not None
        assert batch(job).segments == (segment,)
        if segment == 1:
            work.died(job, "killed")
        elif segment == 2:
            work.told(job, {"ends": True, "results": [{"segment": "s2", "number": 2, "error": "no", "again": True}]})
        else:
            work.told(job, {"ends": True, "results": [result(0, 0.5)]})
    (trial,) = Journal(tmp_path / "trials.jsonl").finished
    assert (trial.state, trial.value) == ("done", 0.5)
    assert trial.note == "2 segments failed, the first (s1): killed"
    assert best_by_segment(work._segments, results)[2]["error"] == "no"


def test_one_segment_that_fails_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    users, items = random.integers(0, 9, 400).tolist(), np.minimum(random.zipf(1.3, 400) - 1, 8).tolist()
    whole = events(users, items)
    columns = Catalogue.of([str(row) for row in range(9)])
    segments = by_mark(pa.array(["a", "b"] * 200), 300, 10)
    data = SegmentedData(whole, columns, segments, 300, 20, 50, 0)
    runner = SegmentRunner(data, "ndcg_at_10", 0, str(tmp_path))
    work, _ = trials(tmp_path, [5, 5])
    load = batch(work.take(SHAPE))
    found = runner.run(Batch(load.configuration, (0, 1)), lambda _: None)
    assert [sorted(one) for one in found["results"]] == [
        ["bytes", "cases", "evaluate_s", "fit_s", "metrics", "note", "number", "segment", "value"]
    ] * 2
    assert (
        runner.run(Batch(load.configuration, (1,)), lambda _: None)["results"][0]["value"]
        == found["results"][1]["value"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segment-00000", "segment-00001"]
    whole_cut = SegmentedData.cut

    def torn(self: SegmentedData, segment: int) -> Any:
        if segment == 0:
            raise MemoryError("not enough")
        return whole_cut(self, segment)

    monkeypatch.setattr(SegmentedData, "cut", torn)
    failed, fine = runner.run(Batch(load.configuration, (0, 1)), lambda _: None)["results"]
    assert failed == {"segment": "a", "number": 0, "error": "MemoryError: not enough", "again": True}
    assert fine["value"] == found["results"][1]["value"]
