"""Figures in the lake: each final hour and day once, equal to what `/v1/stats` says, kept when that forgets them."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from app.events.columns import EVENT_COLUMNS
from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import EVENTS, IMPORT_PARTITION, IMPRESSIONS, format_time
from app.events.windows import tumbling
from app.lake import figures as lake_figures
from app.lake.commit import Progress, append
from app.lake.compaction import compact
from app.lake.snapshot import export, snapshot
from app.lake.tables import FIGURES, open_lake
from app.settings import Settings
from app.stats.batch import StatsBatch
from app.stats.counters import DAY_US, HOUR_US
from app.stats.final import FigureKeeper, final_rows, write_rows
from app.stats.fold import StatsFold
from app.stats.from_lake import figures_of_lake, fold_tables
from app.stats.held import HOURS, MemoryHeld
from app.stats.reader import StatsReader
from app.stats.store import RocksHeld, StatsPaths
from scripts.cli import app as manta

MINUTE = 60_000_000
START = 20_000 * DAY_US
NOW = START + 100 * DAY_US
SETTINGS = Settings.model_validate(
    {
        "stats": {"allowed_lateness_s": 1200, "attribution_s": 2400, "keep_hours": 5, "keep_days": 2},
        "surfaces": {"home": {}},
    }
)


def messages(hour: int) -> tuple[pa.Table, pa.Table]:
    """Events and impressions of an hour: two answers of two items, one of them clicked."""
    at = START + hour * HOUR_US
    answers = [
        {
            "request_id": f"r{hour}-{n}", "surface": "home", "bundle": "b", "time": at + n * MINUTE,
            "items": [{"item_id": str(i), "position": i, "sources": ["ease"][: i - 1]} for i in (1, 2)],
            "partition": 0, "offset": 2 * hour + n,
        }
        for n in range(2)
    ]  # fmt: skip
    click = {
        "event_id": f"e{hour}", "user_id": "u", "item_id": "2", "event_type": "click", "request_id": f"r{hour}-1",
        "event_time": at + 5 * MINUTE, "record_time": at, "partition": 0, "offset": hour,
    }  # fmt: skip
    return pa.Table.from_pylist([click], EVENT_COLUMNS), pa.Table.from_pylist(answers, IMPRESSION_COLUMNS)


def traffic(fold: StatsFold, hours: range) -> None:
    """A batch an hour."""
    both = [(EVENTS, 0), (IMPRESSIONS, 0)]
    for hour in hours:
        offsets = {(EVENTS, 0): hour + 1, (IMPRESSIONS, 0): 2 * hour + 2}
        fold.apply(StatsBatch(*messages(hour), offsets, partitions=both), now_us=NOW)


def kept(home: Path) -> list[dict[str, Any]]:
    order = [(name, "ascending") for name in ("size", "window_start", "by_source", "source")]
    rows: list[dict[str, Any]] = snapshot(open_lake(SETTINGS, home), FIGURES).read().sort_by(order).to_pylist()
    return rows


def settle(keeper: FigureKeeper, fold: StatsFold, held: RocksHeld | MemoryHeld) -> None:
    """Until all that is final is noted as written."""
    deadline = time.monotonic() + 60
    while fold.final_beyond_lake():
        keeper.look(fold, held)
        keeper.close()
        assert time.monotonic() < deadline, "the lake did not take it"
    keeper.look(fold, held)


def test_each_final_window_once_as_the_live_figures_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = RocksHeld(StatsPaths(tmp_path).database)
    reader = StatsReader(SETTINGS.stats, tmp_path, "test")
    fold, keeper = StatsFold(held, SETTINGS), FigureKeeper(SETTINGS, tmp_path)
    live: dict[tuple[str, int, bool, str | None], tuple[int, int, int]] = {}
    for first in range(0, 60, 4):
        traffic(fold, range(first, first + 4))
        if first % 20 == 16:
            settle(keeper, fold, held)
            fold = StatsFold(held, SETTINGS)  # as after a crash
        time.sleep(0.11)  # what a reader sees is that old at most
        for step, by_source in (("hour", False), ("hour", True), ("day", False), ("day", True)):
            for one in reader.figures(START, NOW, step, surface=None, by_source=by_source):  # type: ignore[arg-type]
                if one.final:
                    live[step, one.start, by_source, one.figure.source] = one.figure.counts
    settle(keeper, fold, held)
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.setenv("MANTA_LAKE__PARTITION", "day")
    told = json.loads(CliRunner().invoke(manta, ["lake", "stats", "--json"]).stdout)["tables"]
    (final,) = (table["final"] for table in told if table["table"] == FIGURES)
    assert final == {"hour": format_time(START + 58 * HOUR_US), "day": format_time(START + 2 * DAY_US)}
    rows = kept(tmp_path)
    found = {
        (row["size"], int(row["window_start"].timestamp()) * 1_000_000, row["by_source"], row["source"]): (
            row["impressions"],
            row["clicks"],
            row["conversions"],
        )
        for row in rows
    }
    assert len(found) == len(rows)  # none twice
    assert found == live
    assert len({key[1] for key in found if key[0] == "hour"}) == 58  # all but what is not final yet
    # RocksDB and `/v1/stats` have only what the settings keep by now
    fold.apply(StatsBatch(), now_us=NOW)
    assert len({key[:8] for key, _ in held.scan(HOURS, b"", b"\xff")}) == 6
    assert reader.figures(START, START + HOUR_US, "hour", surface=None, by_source=False) == []
    reader.close()
    held.close()


def test_killed_behind_the_commit_and_beside_another_writer_nothing_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = MemoryHeld()
    fold = StatsFold(held, SETTINGS)
    traffic(fold, range(6))
    upto = fold.final_beyond_lake()
    rows = final_rows(held, {}, upto)
    assert write_rows(SETTINGS, tmp_path, rows, upto) == len(rows) > 0
    assert write_rows(SETTINGS, tmp_path, rows, upto) == 0  # the writer was killed before it noted it
    traffic(fold, range(6, 9))
    later = fold.final_beyond_lake()
    more = final_rows(held, {}, later)
    real, others = append, iter([True])

    def another_first(*args: Any, **options: Any) -> int:
        if next(others, False):
            write_rows(SETTINGS, tmp_path, more, later)
        return real(*args, **options)

    monkeypatch.setattr(lake_figures, "append", another_first)
    assert write_rows(SETTINGS, tmp_path, more, later) == 0
    lake = open_lake(SETTINGS, tmp_path)
    assert snapshot(lake, FIGURES).rows == len(more)
    done = compact(lake, FIGURES, target_bytes=1_000_000)
    assert (done.files_before, done.files_after) == (2, 1)
    assert write_rows(SETTINGS, tmp_path, more, later) == 0  # the compaction has carried on up to when they are there
    assert export(lake, tmp_path / "out")[FIGURES] == len(more)
    asked = "select size, sum(impressions), sum(clicks) from read_parquet(?) where not by_source group by 1"
    assert duckdb.connect().execute(asked, [str(tmp_path / "out/figures/*.parquet")]).fetchall() == [("hour", 28, 7)]


def test_windows_wait_for_a_lake_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = MemoryHeld()
    fold, keeper = StatsFold(held, SETTINGS), FigureKeeper(SETTINGS, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(lake_figures, "append", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
        traffic(fold, range(30))
        keeper.look(fold, held)
        keeper.close()
        keeper.look(fold, held)
    assert fold.in_lake == {}
    assert len({key[:8] for key in held.families[HOURS]}) == 30  # five are asked for: the others wait
    keeper._not_before = 0.0
    settle(keeper, fold, held)
    traffic(fold, range(30, 31))
    assert len({key[:8] for key in held.families[HOURS]}) == 6
    assert [row["window_start"] for row in kept(tmp_path) if row["size"] == "day"][:1] == [
        datetime.fromtimestamp(START / 1_000_000, UTC)
    ]


def test_the_batch_job_over_the_lake_gives_the_same_and_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, lake = MemoryHeld(), open_lake(SETTINGS, tmp_path)
    fold = StatsFold(held, SETTINGS)
    for name, parts in zip((EVENTS, IMPRESSIONS), zip(*map(messages, range(30)), strict=True), strict=True):
        append(lake.table(name), pa.concat_tables(parts), Progress(), max_open_partitions=5)
    traffic(fold, range(30))
    upto = fold.final_beyond_lake()
    live = [row for row in final_rows(held, {}, upto) if row["size"] == "hour"]
    begin, end = START + 5 * HOUR_US, START + 20 * HOUR_US
    found = figures_of_lake(lake, SETTINGS, tumbling(HOUR_US), start_us=begin, end_us=end).to_pylist()
    names = ("surface", "variant", "bundle", "by_source", "source", "impressions", "clicks", "conversions")
    wanted = [row for row in live if begin <= row["window_start"] < end]
    assert sorted(str([row[name] for name in names]) for row in found) == sorted(
        str([row[name] for name in names]) for row in wanted
    )
    assert len(found) == 45
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.setenv("MANTA_LAKE__PARTITION", "day")
    asked = ["lake", "figures", "--size", "6h", "--step", "3h", "--from", format_time(begin), "--to", format_time(end)]
    done = CliRunner().invoke(manta, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    windows = json.loads(done.stdout)["windows"]
    assert [row["impressions"] for row in windows] == [24] * 5  # from 6, 9, 12, 15 and 18 o'clock
    wrong = CliRunner().invoke(manta, ["lake", "figures", "--size", "six"])
    assert "15m or 7d" in str(wrong.exception)


@pytest.mark.parametrize(("partition", "counted"), [(0, 1), (IMPORT_PARTITION, 30)])
def test_rows_of_an_import_are_late_in_no_order(partition: int, counted: int) -> None:
    events, impressions = map(pa.concat_tables, zip(*map(messages, range(30)), strict=True))
    rows = [row | {"partition": partition, "offset": -row["offset"]} for row in events.to_pylist()]
    found = fold_tables(impressions, pa.Table.from_pylist(rows, EVENT_COLUMNS), SETTINGS, tumbling(DAY_US))
    assert sum(row["clicks"] for row in found.to_pylist() if not row["by_source"]) == counted
