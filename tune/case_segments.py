"""Validation cases by segment (`learn.segments`): by how much is known of the user, or by a column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.errors import MantaError
from app.events.schema import USERS
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.models.interactions import Catalogue, Interactions
from app.settings import Settings
from tune.dataset import TrainingSet, load_training_set, user_marks

Places = NDArray[np.int32]
HISTORY = ((0, "0"), (1, "1-4"), (5, "5-19"), (20, "20+"))  # events before the case, from how many: name
MOST_VALUES = 50  # of a column, those with most cases
LEAST_CASES = 10


def case_segments(settings: Settings, home: Path, data: TrainingSet, cases: NDArray[np.int64]) -> dict[str, Places]:
    """Name (`history=1-4`, `items.genres=Drama`) to the places in `cases` of its own.

    Raises:
        MantaError: no such column.
    """
    found: dict[str, Places] = {}
    for by in settings.learn.segments:
        where, _, name = by.partition(".")
        if where == "history":
            parts = by_history(data.interactions, cases)
        elif where == "items":
            parts = by_items(data.interactions, data.catalogue, name, cases)
        elif where == "users":
            users = snapshot(open_lake(settings, home), USERS).read(["user_id", "columns"])
            parts = by_marks(user_marks(data, users, name).marks, cases)
        else:
            parts = by_marks(load_training_set(settings, home, data.snapshot, event_mark=name).marks, cases)
        found |= {f"{by}={value}": places for value, places in parts.items()}
    return found


def by_history(interactions: Interactions, cases: NDArray[np.int64]) -> dict[str, Places]:
    """By how many events of the user stand before the case."""
    before = np.diff(interactions.histories_before(cases).offsets)
    band = np.searchsorted([start for start, _ in HISTORY], before, "right") - 1
    return _named(band, np.arange(len(cases)), [name for _, name in HISTORY])


def by_items(
    interactions: Interactions, catalogue: Catalogue, column: str, cases: NDArray[np.int64]
) -> dict[str, Places]:
    """By a column of the item that is asked for; of a list a case belongs to each value."""
    if column not in catalogue.columns.column_names:
        known = ", ".join(catalogue.columns.column_names) or "none"
        raise MantaError(f"learn.segments: found {column!r}, wanted a column of the items: {known}")
    values = catalogue.columns[column].take(pa.array(interactions.items[cases])).combine_chunks()
    owner = np.arange(len(cases))
    if pa.types.is_list(values.type):
        owner, values = np.asarray(pc.list_parent_indices(values), np.int64), pc.list_flatten(values)
    return _by_value(pc.cast(values, pa.string()), owner)


def by_marks(marks: pa.Array | None, cases: NDArray[np.int64]) -> dict[str, Places]:
    """By a value of each event; a case without one is of none."""
    return {} if marks is None else _by_value(marks.take(pa.array(cases)), np.arange(len(cases)))


def _by_value(values: pa.Array, owner: NDArray[np.int64]) -> dict[str, Places]:
    codes = values.dictionary_encode()
    held = np.asarray(pc.fill_null(codes.indices, -1), np.int64)
    parts = _named(held[held >= 0], owner[held >= 0], codes.dictionary.to_pylist())
    most = sorted(parts, key=lambda value: (-len(parts[value]), value))[:MOST_VALUES]
    return {value: parts[value] for value in most if len(parts[value]) >= LEAST_CASES}


def _named(codes: NDArray[np.int64], owner: NDArray[np.int64], names: list[str]) -> dict[str, Places]:
    """Places by name; one that repeats counts once."""
    parts = {name: np.unique(owner[codes == code]).astype(np.int32) for code, name in enumerate(names)}
    return {name: places for name, places in parts.items() if len(places)}
