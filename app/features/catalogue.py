"""The features there are. Each is defined once, here; training and serving compute them by the same lines."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.features.definition import DAY_MS, Column, Feature, FeatureContext
from app.features.spec import FeatureSpec

FUSION = 10.0  # ranks beyond this place count little in the fused rank
FOLLOW_ENTRIES = 5  # newest history entries whose followers are looked up
FOLLOW_CELLS = 1_000_000  # dense (question, item) cells at once, each 4 bytes
FEATURES: dict[str, Feature] = {}

Compute = Callable[[FeatureContext], NDArray[np.float32]]


def _feature(columns: Callable[[FeatureSpec], tuple[str, ...]] | None = None) -> Callable[[Compute], Compute]:
    """Enters a computation into FEATURES under its function's name; its docstring is the documentation."""

    def enter(compute: Compute) -> Compute:
        name = compute.__name__
        FEATURES[name] = Feature(name, compute.__doc__ or "", columns or (lambda _: (name,)), compute)
        return compute

    return enter


def _per_source(name: str) -> Callable[[FeatureSpec], tuple[str, ...]]:
    return lambda spec: tuple(f"{name}:{source}" for source in spec.sources)


@_feature(_per_source("source_score"))
def source_score(c: FeatureContext) -> Column:
    """The source's score over the largest of its scores for this question, in [-1, 1]; 0 where it did not name it."""
    starts, filled = c.starts
    if len(starts) == 0:
        return np.zeros_like(c.ranks)
    scores = c.by_source(c.candidates.scores)
    largest = np.ones((len(scores), len(filled)), np.float32)
    largest[:, filled] = np.maximum(np.maximum.reduceat(np.abs(scores), starts, axis=1), 1e-9)
    scores /= largest.take(c.owner, axis=1)
    return scores


@_feature(_per_source("source_rank"))
def source_rank(c: FeatureContext) -> Column:
    """1 / log2(1 + place in the source's list), in (0, 1]; 0 where it did not name the candidate."""
    discount: Column = np.log2(np.maximum(c.ranks, 1) + 1).astype(np.float32, copy=False)
    return source_named(c) / discount


@_feature(_per_source("source_named"))
def source_named(c: FeatureContext) -> Column:
    """Whether the source named the candidate: 0 or 1."""
    return (c.ranks > 0).astype(np.float32)


@_feature()
def fused_rank(c: FeatureContext) -> Column:
    """Sum over sources of FUSION / (FUSION + place)."""
    shares = FUSION / (FUSION + c.ranks) * source_named(c)
    fused: Column = shares.sum(axis=0, keepdims=True)
    return fused


@_feature(lambda spec: ("content_recent", "content_last") if spec.width else ())
def content(c: FeatureContext) -> Column:
    """Cosine of the candidate's content to the recent taste (decaying by place) and to the last item, [0, 1]."""
    return c.content_similarity


@_feature(lambda spec: tuple(f"{name}:{v.name}" for v in spec.vectors for name in ("vector_recent", "vector_last")))
def vector(c: FeatureContext) -> Column:
    """Per vector column, the cosine of the candidate's vector to the recent taste's and to the last item's, [-1, 1]."""
    rows = c.candidates.rows
    return np.concatenate([c.similarity(vectors, vectors.take(rows, axis=0)) for vectors in c.items.vectors])


@_feature(lambda spec: tuple(f"number:{column.name}" for column in spec.numbers))
def number(c: FeatureContext) -> Column:
    """The item's standardised number columns."""
    return c.candidate_numbers.T


@_feature(lambda spec: tuple(f"number_distance:{column.name}" for column in spec.numbers))
def number_distance(c: FeatureContext) -> Column:
    """How far each number is from that of the recent taste, in catalogue standard deviations; 0 without history."""
    distance: Column = np.abs(c.candidate_numbers - c.recent_numbers.take(c.owner, axis=0)).T
    distance *= c.with_history
    return distance


@_feature(lambda spec: ("years_old",) if spec.year else ())
def years_old(c: FeatureContext) -> Column:
    """The as-of year minus the item's year, in decades; 0 where the item has none."""
    place = next(number for number, column in enumerate(c.spec.numbers) if column.name == c.spec.year)
    column = c.spec.numbers[place]
    standard = c.candidate_numbers[:, place]
    now = 1970.0 + c.as_of / (DAY_MS * 365.2425)
    decades = (now.take(c.owner) - (standard * column.scale + column.mean)) / 10.0
    return np.where(standard == 0, 0.0, np.clip(decades, -1, 20))[None, :].astype(np.float32)


@_feature(lambda spec: (*(f"count_{days:g}d" for days in spec.half_lives_days), "count_log", "mean_weight"))
def item_counts(c: FeatureContext) -> Column:
    """log1p of the decayed counts over their mean, one per half-life; log1p(count); the mean event weight."""
    return c.statistics.table.take(c.statistics_rows, axis=0).T


@_feature()
def item_age(c: FeatureContext) -> Column:
    """log1p of the days from the item's first event to the question; 0 for an item without events."""
    first = c.statistics.first.take(c.statistics_rows)
    days = (c.as_of.take(c.owner) - first) / DAY_MS
    return np.where(first < c.statistics.as_of, np.log1p(days), 0.0)[None, :].astype(np.float32)


@_feature()
def popularity_distance(c: FeatureContext) -> Column:
    """log1p(count) of the candidate minus that of the recent taste; 0 without history."""
    known = c.statistics.table[:, -2]
    rows = np.minimum(c.recent.items, c.statistics.n_items)
    mean = np.bincount(c.recent.owner, known[rows] * c.recent_weights, minlength=len(c.recent))
    distance = (known.take(c.statistics_rows) - mean.astype(np.float32).take(c.owner)) * c.with_history
    return distance[None, :]


@_feature(lambda _: ("follows_last", "follows_recent"))
def follows(c: FeatureContext) -> Column:
    """How strongly the candidate has followed the last item, and the last FOLLOW_ENTRIES items (by place)."""
    width = c.statistics.n_items + 1
    group = max(1, FOLLOW_CELLS // width)  # questions at once: bounds the dense scores
    parts = [_follow_scores(c, start, start + group, width) for start in range(0, len(c.histories), group)]
    return np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), np.float32)


def _follow_scores(c: FeatureContext, start: int, end: int, width: int) -> Column:
    """float32 (2, candidates of questions start to end - 1): by the last item, and by the newest items."""
    s = c.statistics
    recent = c.histories.slice(start, min(end, len(c.histories))).last(FOLLOW_ENTRIES)
    place = np.repeat(recent.offsets[1:], recent.lengths) - np.arange(len(recent.items)) - 1
    known = recent.items < s.n_items
    items, owner, place = recent.items[known], recent.owner[known], place[known]
    lengths = s.follow_indptr[items + 1] - s.follow_indptr[items]
    entries = np.arange(lengths.sum()) + np.repeat(s.follow_indptr[items] - (np.cumsum(lengths) - lengths), lengths)
    cells = np.repeat(owner * width, lengths) + s.follow_items[entries]
    weights = s.follow_scores[entries] * np.repeat((1.0 / (place + 1)).astype(np.float32), lengths)
    newest = np.repeat(place == 0, lengths)
    by_last, by_recent = np.zeros((2, len(recent) * width), np.float32)
    by_last[cells[newest]] = weights[newest]
    np.add.at(by_recent, cells, weights)
    mine = slice(c.candidates.offsets[start], c.candidates.offsets[min(end, len(c.histories))])
    wanted = (c.owner[mine] - start) * width + c.statistics_rows[mine]
    return np.stack([by_last.take(wanted), by_recent.take(wanted)])


@_feature()
def history_length(c: FeatureContext) -> Column:
    """log1p of the number of history entries."""
    return c.per_question(np.log1p(c.histories.lengths))


@_feature()
def idle_time(c: FeatureContext) -> Column:
    """log1p of the minutes since the newest history entry; 0 without history."""
    h = c.histories
    if len(h.times) == 0:
        return np.zeros((1, len(c.candidates.rows)), np.float32)
    newest = h.times[np.maximum(h.offsets[1:] - 1, 0)]
    minutes = np.where(h.lengths > 0, np.maximum(h.as_of - newest, 0) / 60_000.0, 0.0)
    return c.per_question(np.log1p(minutes))


@_feature(lambda _: ("session_events", "session_minutes", "session_distinct"))
def session(c: FeatureContext) -> Column:
    """log1p of the entries and the minutes of the current session; the share of different items in it."""
    s = c.session
    values = np.stack([np.log1p(s.events), np.log1p(np.maximum(s.minutes, 0)), s.distinct])
    return values.astype(np.float32).take(c.owner, axis=1)


@_feature(lambda spec: ("session_shared", "session_dominant") if spec.width else ())
def session_content(c: FeatureContext) -> Column:
    """Share of the session's newest items that share a term with the candidate; whether it has their commonest one."""
    return c.session_content


@_feature(lambda _: ("session_silence", "session_open"))
def session_idle(c: FeatureContext) -> Column:
    """log1p of the seconds since the newest entry; whether its session has not ended by then (0 without history)."""
    h = c.histories
    silence = np.zeros(len(h))
    some = h.lengths > 0
    silence[some] = np.maximum(h.as_of[some] - h.times[h.offsets[1:][some] - 1], 0) / 1000.0
    values = np.stack([np.log1p(silence), some & (silence <= c.spec.session_gap_s)])
    return values.astype(np.float32).take(c.owner, axis=1)


@_feature(lambda spec: tuple(f"user:{name}" for name in spec.user_numbers))
def user_number(c: FeatureContext) -> Column:
    """User columns that the spec names; 0 where absent or not a number."""
    return _keyed(c, c.user_columns, c.spec.user_numbers)


@_feature(lambda spec: tuple(f"context:{name}" for name in spec.context_numbers))
def context_number(c: FeatureContext) -> Column:
    """Keys of the request's context that the spec names; 0 where absent or not a number."""
    return _keyed(c, c.context, c.spec.context_numbers)


def _keyed(c: FeatureContext, given: Any, names: tuple[str, ...]) -> Column:
    """Numbers by key and question, spread over the candidates: float32 (len(names), R)."""
    values = np.zeros((len(names), len(c.histories)), np.float32)
    for question, row in enumerate(given or ()):
        for place, name in enumerate(names):
            value = (row or {}).get(name)
            if isinstance(value, int | float) and abs(value) < 1e9:
                values[place, question] = value
    return values.take(c.owner, axis=1)
