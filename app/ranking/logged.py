"""Training rows from the log: what the ranker saw of each shown item, and what came of it.

Nothing is computed again: the features are those that serving had, from `impressions`; labels come from `events` by
request id and item id.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.schema import IMPRESSION
from app.events.window_merge import key_codes
from app.ranking.examples import Examples

_SEPARATOR = "\x1f"
_KEYS = ("request_id", "item_id")


@dataclass(frozen=True, slots=True)
class LoggedRows:
    """n shown items.

    Attributes:
        names: of the F features.
        features: float32 (n, F), as serving computed them.
        objectives: names of the O objectives.
        labels: float32 (n, O), 1 where the item was reacted to as the objective has it.
        propensity: float64 (n,), the probability that it stood where it stood; NaN: not logged.
        position: int32 (n,), from 1.
        offsets: int64 (answers + 1,): the rows of each answer.
        requests: the answers' request ids.
        left_out: answers with the features of another spec.
    """

    names: tuple[str, ...]
    features: NDArray[np.float32]
    objectives: tuple[str, ...]
    labels: NDArray[np.float32]
    propensity: NDArray[np.float64]
    position: NDArray[np.int32]
    offsets: NDArray[np.int64]
    requests: list[str]
    left_out: int

    def examples(self, names: tuple[str, ...] | None = None) -> Examples:
        """As a ranker learns from them: each answer a case. `names`: the same features in another order."""
        places = [self.names.index(name) for name in names or self.names]
        features = self.features if names in (None, self.names) else np.ascontiguousarray(self.features[:, places])
        return Examples(features, self.offsets, self.labels, self.objectives, self.position)


def logged_rows(
    impressions: pa.Table,
    events: pa.Table,
    *,
    objectives: Mapping[str, Collection[str]],
    attribution_us: int,
    names: tuple[str, ...] | None = None,
    posted_surfaces: Collection[str] = (),
) -> LoggedRows:
    """Joins answers that carry features with what users did.

    Args:
        impressions: IMPRESSION_COLUMNS, as the lake has them; an answer that is there twice counts once.
        events: EVENT_COLUMNS, each once.
        objectives: by name the event types that are a reaction (`learn.objectives`).
        attribution_us: how far a reaction may lie from its answer, microseconds (`stats.attribution_s`).
        names: of the features wanted; None: those of the newest answer.
        posted_surfaces: surfaces on which only items count that the client has posted as shown.
    """
    answers, left_out = _of_one_spec(impressions, names)
    if not len(answers):
        return _nothing(names or (), tuple(objectives), left_out)
    wanted = tuple(answers["feature_names"][0].as_py())
    lists = answers["items"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    owner = np.repeat(np.arange(len(answers)), lengths)
    items = lists.flatten()
    features = answers["features"].combine_chunks().flatten().flatten()
    table = features.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(items), len(wanted))
    shown = pa.table(
        {"request_id": answers["request_id"].take(pa.array(owner)), "item_id": pc.struct_field(items, "item_id")}
    )
    times = answers["time"].cast(pa.int64()).to_numpy()[owner]
    near = _Near(shown, times, events, attribution_us)
    posted = np.asarray(pc.is_in(answers["surface"], value_set=pa.array(sorted(posted_surfaces), pa.string())))
    kept = np.flatnonzero(~posted.astype(bool)[owner] | near.any([IMPRESSION]))
    counts = np.bincount(owner[kept], minlength=len(answers))
    propensity = pc.struct_field(items, "propensity").cast(pa.float64())
    return LoggedRows(
        wanted,
        table[kept],
        tuple(objectives),
        np.stack([near.any(kinds) for kinds in objectives.values()], axis=1).astype(np.float32)[kept],
        pc.fill_null(propensity, np.nan).to_numpy(zero_copy_only=False)[kept],
        pc.struct_field(items, "position").to_numpy(zero_copy_only=False).astype(np.int32)[kept],
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        answers["request_id"].to_pylist(),
        left_out,
    )


def _of_one_spec(impressions: pa.Table, names: tuple[str, ...] | None) -> tuple[pa.Table, int]:
    """The answers with these features, oldest first and each once, and how many have others."""
    have = impressions.filter(pc.and_(pc.is_valid(impressions["features"]), pc.is_valid(impressions["feature_names"])))
    have = have.sort_by([("time", "ascending"), ("request_id", "ascending")])
    if not len(have):
        return have, 0
    _, first = np.unique(key_codes(have, ["request_id"]), return_index=True)
    have = have.take(pa.array(np.sort(first)))
    specs = pc.binary_join(have["feature_names"], _SEPARATOR)
    wanted = specs[-1].as_py() if names is None else _SEPARATOR.join(names)
    chosen = have.filter(pc.equal(specs, wanted))
    return chosen, len(have) - len(chosen)


class _Near:
    """Which of the shown items were reacted to within the attribution window."""

    def __init__(self, shown: pa.Table, times: NDArray[np.int64], events: pa.Table, attribution_us: int) -> None:
        about = events.filter(pc.and_(pc.is_valid(events["request_id"]), pc.is_valid(events["item_id"])))
        both = pa.concat_tables([shown.select(_KEYS), about.select(_KEYS)])
        codes = key_codes(both, _KEYS)
        mine, theirs = codes[: len(shown)], codes[len(shown) :]
        row_of = np.full(int(codes.max()) + 1, -1, np.int64)
        row_of[mine] = np.arange(len(mine))
        rows = row_of[theirs]
        moments = about["event_time"].cast(pa.int64()).to_numpy()
        hits = np.flatnonzero((rows >= 0) & (np.abs(moments - times[rows]) <= attribution_us))
        self._rows, self._kinds, self._count = rows[hits], about["event_type"].take(pa.array(hits)), len(shown)

    def any(self, kinds: Collection[str]) -> NDArray[np.bool_]:
        """bool (n,): reacted to by an event of one of these types."""
        of_kind = np.asarray(pc.is_in(self._kinds, value_set=pa.array(sorted(kinds), pa.string()))).astype(bool)
        found: NDArray[np.bool_] = np.bincount(self._rows[of_kind], minlength=self._count) > 0
        return found


def _nothing(names: tuple[str, ...], objectives: tuple[str, ...], left_out: int) -> LoggedRows:
    return LoggedRows(
        names,
        np.empty((0, len(names)), np.float32),
        objectives,
        np.empty((0, len(objectives)), np.float32),
        np.empty(0, np.float64),
        np.empty(0, np.int32),
        np.zeros(1, np.int64),
        [],
        left_out,
    )
