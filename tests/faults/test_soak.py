"""The soak in short: `scripts/bench soak` runs it for long."""

from pathlib import Path

import pytest

from tests.faults.soak import soak

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(600)]


def test_nothing_is_lost_or_doubled_whatever_is_killed(kafka_jars: None, short_home: Path, tmp_path: Path) -> None:
    report = soak(short_home, tmp_path / "kafka", events=20_000, least_kills=2)
    report.show()
    assert (report.lost_in_lake, report.doubled_in_lake, report.strange_in_lake) == (0, 0, 0)
    assert report.wrong_histories == []
    assert report.lake_rows == report.acknowledged >= 20_000
    assert min(report.kills.values()) >= 2
