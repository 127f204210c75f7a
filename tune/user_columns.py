"""Columns of users that are features: what the lake has of them, for examples of the ranker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from app.events.schema import USERS
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.settings import Settings
from tune.dataset import TrainingSet

UserColumns = Sequence[Mapping[str, Any] | None]


def user_columns(settings: Settings, home: Path, data: TrainingSet) -> UserColumns | None:
    """The columns `learn.user_features` of each user of the data, as they are now; None: no column is a feature."""
    names = settings.learn.user_features
    if not names:
        return None
    rows = snapshot(open_lake(settings, home), USERS).read(["user_id", "columns"])
    known: dict[str, dict[str, Any]] = {}
    for user, text in zip(rows["user_id"].to_pylist(), rows["columns"].to_pylist(), strict=True):
        columns = orjson.loads(text) if text else {}
        known[user] = {name: columns[name] for name in names if name in columns}
    return [
        None if session else known.get(user)
        for user, session in zip(data.user_ids, data.sessions.tolist(), strict=True)
    ]
