"""How near retention is, from what the broker says; what a topic keeps, judged."""

import json
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import InvalidConfigurationError

from app.errors import MantaError
from app.events.limits import Limits, complaints, refuse_compaction
from app.events.retention import LogState, nearest
from app.events.topics import _create
from app.settings import Settings
from app.state.position import Position
from deployments.retention import RetentionFile, measure_here

HOUR = 3_600_000
NOW = 1_000 * HOUR


def log(**given: int | None) -> LogState:
    """100 messages of 10 bytes, the oldest 10 hours old."""
    return LogState(
        **({"first": 0, "end": 100, "bytes": 1000, "first_time": NOW - 10 * HOUR, "next_time": None} | given)  # type: ignore[arg-type]
    )


def test_by_time_it_is_the_oldest_unread_message_that_counts() -> None:
    week = Limits(retention_ms=168 * HOUR)
    behind = log(next_time=NOW - 167 * HOUR)
    found = nearest("lake", "events", week, {0: log(), 1: behind}, {0: 100, 1: 40}, NOW)
    assert (found.partition, found.hours_by_time, found.hours, found.unread) == (1, 1.0, 1.0, 60)
    assert nearest("lake", "events", week, {0: log()}, {0: 100}, NOW).hours == 168
    gone = nearest("lake", "events", week, {0: log(next_time=NOW - 400 * HOUR)}, {0: 0}, NOW)
    assert gone.hours == 0


def test_by_bytes_it_is_the_room_behind_the_reader_at_the_rate_of_the_log() -> None:
    # 100 bytes an hour; 600 of 1000 bytes are unread, so that 900 more may come
    kept = Limits(retention_bytes=1500)
    found = nearest("state", "events", kept, {0: log()}, {0: 40}, NOW)
    assert (found.hours_by_time, found.hours_by_bytes) == (None, 9.0)
    assert nearest("state", "events", Limits(retention_bytes=600), {0: log()}, {0: 40}, NOW).hours == 0
    unknown = log(bytes=None)
    assert nearest("state", "events", kept, {0: unknown}, {0: 40}, NOW).hours is None


def test_the_nearer_of_the_two_counts() -> None:
    both = Limits(retention_ms=24 * HOUR, retention_bytes=1500)
    found = nearest("lake", "events", both, {0: log(next_time=NOW - 20 * HOUR)}, {0: 40}, NOW)
    assert (found.hours_by_time, found.hours_by_bytes, found.hours) == (4.0, 9.0, 4.0)


def test_a_reader_that_has_been_reached_already_is_an_alarm_though_nothing_is_left_to_read() -> None:
    kept, emptied = Limits(retention_ms=168 * HOUR, retention_bytes=1500), log(first=100, bytes=0, first_time=None)
    found = nearest("lake", "events", kept, {0: log(), 1: emptied}, {0: 100, 1: 40}, NOW)
    assert (found.partition, found.hours, found.unread) == (1, 0, 60)
    assert nearest("lake", "events", Limits(), {0: emptied}, {0: 99}, NOW).hours == 0
    assert nearest("lake", "events", kept, {0: emptied}, {0: 100}, NOW).hours == 168


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_compaction_of_events_is_refused_with_the_reason(policy: str) -> None:
    with pytest.raises(MantaError, match=f"found cleanup.policy={policy}, wanted delete: compaction would silently"):
        refuse_compaction({"events": Limits(policy)})
    refuse_compaction({"events": Limits(), "items": Limits("compact")})


def test_a_retention_that_is_too_short_is_said() -> None:
    kept = {
        "events": Limits(retention_ms=HOUR),
        "impressions": Limits(retention_ms=100 * HOUR),
        "items": Limits("delete", retention_ms=100 * HOUR),
        "users": Limits("compact", retention_ms=HOUR),
    }
    short, lost = complaints(kept, 24)
    assert "topic events: found retention.ms=3600000 (1 h), wanted kafka.alarm_h=24 h or more" in short
    assert "topic items: found cleanup.policy=delete, wanted compact" in lost
    assert list(complaints({"events": Limits()}, 24)) == []


def test_a_node_without_the_lake_says_nothing_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def measure(_: object, readers: dict[str, object]) -> list[object]:
        asked.append(set(readers))
        return []

    monkeypatch.setattr("app.events.retention.measure", measure)
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": "nowhere:1"}})
    position = Position.create(tmp_path / "state" / "position")
    measure_here(settings, tmp_path)  # another node: only its own state
    assert not (tmp_path / "lake").exists()
    (tmp_path / "lake").mkdir()
    measure_here(settings, tmp_path)
    position.close()
    assert asked == [{"state"}, {"lake", "state"}]


def test_a_measurement_is_shown_once(tmp_path: Path) -> None:
    file = RetentionFile(tmp_path)
    assert file.changed() is None
    (tmp_path / "retention.json").write_text(json.dumps({"readers": []}))
    assert file.changed() == {"readers": []}
    assert file.changed() is None


def test_a_topic_that_believes_any_clock_is_said() -> None:
    (line,) = complaints({"events": Limits(ahead_ms=2**63 - 1), "items": Limits("compact", ahead_ms=3_600_000)}, 24)
    assert "topic events: found message.timestamp.after.max.ms=9223372036854775807, wanted 3600000" in line


def test_a_broker_that_does_not_know_the_bound_gets_its_topics_all_the_same() -> None:
    made: list[dict[str, str]] = []

    class Broker:
        def create_topics(self, topics: dict[str, dict[str, Any]]) -> None:
            made.append(topics["users"]["configs"])
            if "message.timestamp.after.max.ms" in made[-1]:
                raise InvalidConfigurationError

    _create(Broker(), "users", {"num_partitions": 1, "configs": {"cleanup.policy": "compact"}})
    assert [sorted(configs) for configs in made] == [
        ["cleanup.policy", "message.timestamp.after.max.ms"],
        ["cleanup.policy"],
    ]
