"""When what went live is taken back: errors, latency and CTR, each against thresholds and never on noise."""

from pathlib import Path

import orjson
import pytest

from app.chain.request import Answer, Reason
from app.errors import RequestInvalid
from app.settings import PromotionSettings, Settings
from app.stats.attribution import Place
from app.stats.counters import DAY_US, HOUR_US, add_figures
from app.stats.fallen import Shown, both, highest_difference
from app.stats.fold import STATE
from app.stats.held import DAYS, HOURS, META, Draft
from app.stats.reader import StatsReader
from app.stats.store import RocksHeld, StatsPaths
from deployments.ctr_watch import CtrWatch
from deployments.health import BUCKETS, Health, Tally, harm, percentile_ms, since

WANTED = PromotionSettings()


def answer(ms: float, reason: Reason | None = None) -> Answer:
    degraded = None if reason is None else "popular"
    return Answer("r", "home", "champion", "b", degraded, reason, (), {"total": ms})  # type: ignore[arg-type]


def test_errors_are_judged_on_enough_answers_and_only_those_of_the_bundle() -> None:
    health = Health()
    health.count("b", [RuntimeError()] * 30, local=True)
    assert harm(since({}, health.tallies(["b"])), Tally(), WANTED) is None
    health.count("b", [RuntimeError()] * 30, local=True)
    found = harm(since({}, health.tallies(["b"])), Tally(), WANTED)
    assert found is not None
    assert found.figures == {"by": "errors", "failed": 60, "asked": 60}
    assert harm(since({"g": Tally(60, 60)}, {"g": Tally(160, 80)}), Tally(), WANTED) is None
    assert harm(Tally(100, 21), Tally(), WANTED) is not None
    assert harm(Tally(100, 21), Tally(), PromotionSettings(most_failed=0.3)) is None
    assert health.tallies([]) == {}
    health.count("c", [RequestInvalid("k", 0, "more"), answer(1, Reason("state", "error"))], local=True)
    health.count("c", [answer(1, Reason("rank", "error"))], local=False)
    assert health.tallies(["c"])["c"].failed == 0
    health.count("c", [answer(1, Reason("rank", "error"))], local=True)
    assert health.tallies(["c"])["c"].failed == 1


def test_latency_is_judged_by_a_percentile_against_what_was_live_before() -> None:
    def tally(*milliseconds: float) -> Tally:
        health = Health()
        health.count("b", [answer(ms) for ms in milliseconds], local=True)
        return since({}, health.tallies(["b"]))

    before = tally(*[20.0] * 570, *[900.0] * 30)
    assert len(before.times) == BUCKETS
    assert 20 <= percentile_ms(before.times) < 20 * 2**0.5
    found = harm(tally(*[20.0] * 500, *[400.0] * 100), before, WANTED)
    assert found is not None
    assert found.figures["by"] == "latency"
    assert found.reason.startswith("latency: 95% of its answers took up to")
    assert harm(tally(*[20.0] * 580, *[400.0] * 20), before, WANTED) is None
    assert harm(tally(*[400.0] * 499), before, WANTED) is None  # too few
    assert harm(tally(*[400.0] * 600), tally(*[20.0] * 499), WANTED) is None  # nothing to compare with
    assert harm(tally(*[40.0] * 600), tally(*[1.0] * 600), WANTED) is None  # much slower, and still fast
    assert harm(tally(*[400.0] * 600), before, PromotionSettings(most_slower=30)) is None


@pytest.mark.parametrize(
    ("mine", "theirs", "fallen"),
    [
        (Shown(20_000, 400), Shown(20_000, 1000), True),
        (Shown(20_000, 930), Shown(20_000, 1000), False),  # lower, but by less than a tenth
        (Shown(2000, 80), Shown(2000, 100), False),  # a fifth lower: noise at this many
        (Shown(2000, 0), Shown(100_000, 5000), True),
        (Shown(2000, 0), Shown(100_000, 200), False),  # four clicks were to be expected
        (Shown(20_000, 1000), Shown(20_000, 400), False),
    ],
)
def test_ctr_falls_only_where_the_interval_says_so(mine: Shown, theirs: Shown, fallen: bool) -> None:
    assert (highest_difference(mine, theirs, WANTED.most_ctr_loss) < 0) is fallen


def figures(home: Path, hours: list[tuple[int, str, int, int]], watermark: int) -> RocksHeld:
    """A node's database with hours of (hour, bundle, impressions, clicks)."""
    held = RocksHeld(StatsPaths(home).database)
    draft = Draft(held)
    changed = {
        Place(hour * HOUR_US, "home", "champion", bundle, False, None): (shown, clicks, 0)
        for hour, bundle, shown, clicks in hours
    }
    add_figures(changed, draft, {HOURS: 0, DAYS: 0})
    state = {"progress": {"watermark": watermark, "as_of": watermark, "complete": watermark}}
    held.write(draft.changes | {META: {STATE: orjson.dumps(state)}})
    return held


def test_the_live_figures_of_both_bundles_are_compared_once_clicks_have_come(tmp_path: Path) -> None:
    """Yesterday's nine o'clock against today's; at night all click less, and the hour under way has clicks to come."""
    settings = Settings.model_validate({"surfaces": {"home": {}}})
    night = [(27, "old", 30_000, 30), (51, "new", 3000, 3)]
    day = [(33, "old", 30_000, 1500), (57, "new", 5000, 100)]
    watch = CtrWatch(settings, tmp_path, "test")
    assert watch("new", {"home": "old"}) is None  # no figures yet
    held = figures(tmp_path, [*night, *day], 58 * HOUR_US)
    try:
        assert watch("new", {"home": "old"}) is None  # nine o'clock has only just ended
        hours = StatsReader(settings.stats, tmp_path, "other").figures(
            0, 99 * HOUR_US, "hour", surface="home", by_source=False
        )
        assert both(hours, "new", "old", 52 * HOUR_US) == (Shown(3000, 3), Shown(30_000, 30))
        assert 51 * HOUR_US % DAY_US == 27 * HOUR_US % DAY_US
    finally:
        held.close()
    held = figures(tmp_path, [], 59 * HOUR_US)
    held.close()
    watch = CtrWatch(settings, tmp_path, "again")
    found = watch("new", {"home": "old"})
    assert found is not None
    assert found.figures == {"by": "ctr", "surface": "home", "ctr": 103 / 8000, "before": 1530 / 60_000}
    assert "103 of 8000" in found.reason
    assert watch("new", {"home": "another"}) is None
    many = {"surfaces": {"home": {}}, "promotion": {"least_impressions": 8001}}
    assert CtrWatch(Settings.model_validate(many), tmp_path, "third")("new", {"home": "old"}) is None
