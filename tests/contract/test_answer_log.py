"""From the lake to a ranker's examples: what serving logged, in the order that a new chain wants, and none too few."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.events.columns import EVENT_COLUMNS
from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import EVENTS, IMPRESSIONS, USERS
from app.lake.commit import Progress, append, replace
from app.lake.logged import logged_answers
from app.lake.tables import TABLES, open_lake
from app.settings import Settings
from tests.unit.chain_world import catalogue, interactions
from tune import answer_log
from tune.answer_log import LEAST_ANSWERED, AnswerLog
from tune.dataset import TrainingSet
from tune.user_columns import user_columns

SETTINGS = Settings.model_validate({"learn": {"objectives": {"click": ["click"], "buy": ["purchase", "order"]}}})
START = 1_700_000_000_000_000
MINUTE = 60_000_000
ANSWERS = 2 * LEAST_ANSWERED
NAMES = ("a", "b")


def answer(number: int, names: tuple[str, ...] | None = NAMES) -> dict[str, Any]:
    shown = [{"item_id": f"i{place}", "position": place, "propensity": 1.0} for place in (1, 2, 3)]
    features = None if names is None else [[number + 0.1 * place, -float(place)] for place in (1, 2, 3)]
    return {
        "request_id": f"r{number}", "surface": "home", "time": START + number * MINUTE, "items": shown,
        "feature_names": names, "features": features, "partition": 0, "offset": number,
    }  # fmt: skip


def event(number: int, item: str, kind: str) -> dict[str, Any]:
    return {
        "event_id": f"e{number}{kind}", "user_id": "u", "item_id": item, "event_type": kind,
        "request_id": f"r{number}", "event_time": START + number * MINUTE + 1, "partition": 0, "offset": number,
    }  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> AnswerLog:
    home = tmp_path_factory.mktemp("home")
    lake = open_lake(SETTINGS, home)
    turned, other = NAMES[::-1], ("a", "c")
    kinds = (NAMES, turned, NAMES, None)
    answers = [answer(n, kinds[n % 4]) for n in range(ANSWERS)] + [answer(ANSWERS, other)]
    events = [event(n, "i2", "click") for n in range(ANSWERS)] + [event(n, "i3", "order") for n in range(20)]
    for table, rows, schema in ((IMPRESSIONS, answers, IMPRESSION_COLUMNS), (EVENTS, events, EVENT_COLUMNS)):
        half = len(rows) // 2
        for part in (rows[:half], rows[half:]):
            append(lake.table(table), pa.Table.from_pylist(part, schema), Progress(), max_open_partitions=9)
    return AnswerLog.read(SETTINGS, home)


def test_what_serving_logged_becomes_examples(log: AnswerLog) -> None:
    found = log.examples(("a", "b"))
    assert found is not None
    assert len(found) == ANSWERS * 3 // 4  # those without features are not learned from
    assert found.objectives == ("click",)  # too few orders
    assert set(found.targets.tolist()) == {1}
    assert found.positions.reshape(-1, 3).tolist() == [[1, 2, 3]] * len(found)
    numbers = np.floor(found.features[::3]).astype(int)
    plain = numbers[:, 1] == -1
    assert sorted(numbers[plain, 0].tolist()) == [n for n in range(ANSWERS) if n % 4 in (0, 2)]
    assert sorted(numbers[~plain, 1].tolist()) == [n for n in range(ANSWERS) if n % 4 == 1]  # logged as (b, a)


def test_nothing_from_behind_a_time_and_nothing_of_other_features(log: AnswerLog) -> None:
    until = ANSWERS * 3 // 4
    found = log.examples(NAMES, before_ms=(START + until * MINUTE) // 1000)
    assert found is not None
    assert len(found) == sum(n % 4 != 3 for n in range(until))
    assert log.examples(NAMES, before_ms=(START + 20 * MINUTE) // 1000) is None  # too few reactions by then
    assert log.examples(("a", "c")) is None
    assert log.examples(("a", "b", "c")) is None


def test_only_the_newest_are_read(log: AnswerLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = AnswerLog.read(SETTINGS, tmp_path)
    assert empty.examples(NAMES) is None
    lake = open_lake(SETTINGS, tmp_path)
    for first in (30, 0, 60):  # the order of arrival says nothing
        rows = pa.Table.from_pylist([answer(n) for n in range(first, first + 30)], IMPRESSION_COLUMNS)
        append(lake.table(IMPRESSIONS), rows, Progress(), max_open_partitions=9)
    kept = logged_answers(lake, 10)
    assert kept["request_id"].to_pylist() == [f"r{n}" for n in range(80, 90)]
    monkeypatch.setattr(answer_log, "MOST_ANSWERS", 7)
    assert len(AnswerLog.read(SETTINGS, tmp_path).answers) == 7


def test_columns_of_users_come_from_the_lake_where_they_are_asked_for(tmp_path: Path) -> None:
    known = [{"user_id": "0", "columns": '{"age": 30, "name": "x"}'}, {"user_id": "2", "columns": None}]
    replace(open_lake(SETTINGS, tmp_path).table(USERS), pa.Table.from_pylist(known, TABLES[USERS]), Progress())
    data, items = interactions(), catalogue()
    sessions = np.arange(data.n_users) == 1
    ids = ["0", "0", "2", *map(str, range(3, data.n_users))]  # the second is a session that is called like a user
    made = TrainingSet(data, items, np.ones(len(items), np.bool_), ids, sessions, "s", "h")
    asking = Settings.model_validate({"learn": {"user_features": ["age", "height"]}})
    found = user_columns(asking, tmp_path, made)
    assert found is not None
    assert list(found[:4]) == [{"age": 30}, None, {}, None]
    assert len(found) == data.n_users
    assert user_columns(SETTINGS, tmp_path, made) is None
