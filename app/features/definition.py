"""What a feature is: a name and one vectorised computation, used by training and by serving alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.features.items import ItemFeatures
from app.features.session import CurrentSession
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.models.interactions import Histories
from app.retrieval.query import Candidates

Column = NDArray[np.float32]
DAY_MS = 86_400_000.0
RECENT_TAU = 3.0  # places: how fast an entry loses weight in the recent taste
RECENT_LIMIT = 30  # entries behind the newest that the recent taste still looks at


@dataclass(slots=True, frozen=True)
class Feature:
    """One definition.

    Attributes:
        name: how specs name it.
        doc: what it says, with unit and range.
        columns: the names of the columns it gives under a spec, for example one per source.
        compute: context -> as many float32 (R,) columns, as float32 (W, R); finite.
    """

    name: str
    doc: str
    columns: Callable[[FeatureSpec], tuple[str, ...]]
    compute: Callable[["FeatureContext"], NDArray[np.float32]]


class FeatureContext:
    """All that the features of R candidates of B questions may look at. Arrays in, no clock: time is `as_of`.

    Args:
        spec: the bundle's feature spec.
        histories: B histories, those that retrieval used (the anchors, where a request names items), rows of `items`.
        candidates: R candidates, S sources.
        sources: the names of the S sources, in the order of the candidates' columns.
        items: content arrays of the live rows.
        statistics: item statistics as of their own time, never later than the questions'.
        user_columns, context: per question, or None.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        histories: Histories,
        candidates: Candidates,
        sources: Sequence[str],
        items: ItemFeatures,
        statistics: ItemStatistics,
        user_columns: Sequence[Mapping[str, Any] | None] | None = None,
        context: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        self.spec, self.histories, self.candidates, self.sources = spec, histories, candidates, tuple(sources)
        self.items, self.statistics, self.user_columns, self.context = items, statistics, user_columns, context

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """int64 (R,): the question of each candidate."""
        return self.candidates.owner

    @cached_property
    def as_of(self) -> NDArray[np.int64]:
        """int64 (B,): the questions' time, never before that of the statistics (a state without events says 0)."""
        return np.maximum(self.histories.as_of, self.statistics.as_of)

    @cached_property
    def starts(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where the candidates of each question that has any start, and bool (B,): which questions those are."""
        filled = np.diff(self.candidates.offsets) > 0
        return self.candidates.offsets[:-1][filled], filled

    @cached_property
    def source_columns(self) -> list[int]:
        """For each source of the spec its column in the candidates, -1 where this question did not ask it."""
        place = {name: number for number, name in enumerate(self.sources)}
        return [place.get(name, -1) for name in self.spec.sources]

    @cached_property
    def ranks(self) -> NDArray[np.float32]:
        """float32 (S of the spec, R): place in each source's list from 1; 0 where it did not name the candidate."""
        return self.by_source(self.candidates.ranks)

    def by_source(self, columns: NDArray[Any]) -> Column:
        """Candidates' columns (R, S) as float32 (S of the spec, R), a new array; 0 for a source that was not asked."""
        if self.sources == self.spec.sources:
            return np.array(columns.T, np.float32, order="C")
        out = np.zeros((len(self.source_columns), len(columns)), np.float32)
        for place, column in enumerate(self.source_columns):
            if column >= 0:
                out[place] = columns[:, column]
        return out

    @cached_property
    def statistics_rows(self) -> NDArray[np.int64]:
        """int64 (R,): rows into the statistics, whose last row stands for every item that they do not know."""
        return np.minimum(self.candidates.rows, self.statistics.n_items).astype(np.int64)

    @cached_property
    def recent(self) -> Histories:
        """The newest RECENT_LIMIT entries of each history."""
        return self.histories.last(RECENT_LIMIT)

    @cached_property
    def recent_weights(self) -> NDArray[np.float32]:
        """float32 (N of recent,): exp(-place / RECENT_TAU), newest place 0, summing to 1 within a history."""
        ends = np.repeat(self.recent.offsets[1:], self.recent.lengths)
        weights = np.exp((np.arange(len(self.recent.items)) - ends + 1) / RECENT_TAU).astype(np.float32)
        totals = np.bincount(self.recent.owner, weights, minlength=len(self.recent))
        return (weights / totals[self.recent.owner]).astype(np.float32)

    @cached_property
    def candidate_numbers(self) -> Column:
        """float32 (R, M): standardised number columns of the candidates."""
        return self.items.numbers.take(self.candidates.rows, axis=0)

    @cached_property
    def recent_numbers(self) -> Column:
        """float32 (B, M): the recent taste's mean of each number column."""
        return self._taste(self.items.numbers)

    @cached_property
    def session(self) -> CurrentSession:
        """The session that each history's newest entry is in."""
        return CurrentSession.of(self.histories, self.spec.session_gap_s)

    @cached_property
    def candidate_content(self) -> Column:
        """float32 (R, d): content of the candidates."""
        return self.items.content.take(self.candidates.rows, axis=0)

    @cached_property
    def content_similarity(self) -> Column:
        """float32 (2, R): cosine of the candidates' content to the recent taste and to the last item."""
        return self.similarity(self.items.content, self.candidate_content)

    def similarity(self, vectors: Column, found: Column) -> Column:
        """float32 (2, R): cosine of the candidates to the recent taste (the weighted mean) and to the last item.

        Args:
            vectors: float32 (n, d), of unit length or zero, of the live rows.
            found: float32 (R, d), those of the candidates.
        """
        offsets = self.candidates.offsets
        taste = self._taste(vectors)
        taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-9)
        last = np.zeros_like(taste)
        some = self.recent.lengths > 0
        last[some] = vectors[self.recent.items[self.recent.offsets[1:][some] - 1]]
        profiles = np.stack([taste, last], axis=1)  # (B, 2, d)
        out = np.empty((2, len(found)), np.float32)
        for question in range(len(profiles)):
            start, end = offsets[question], offsets[question + 1]
            out[:, start:end] = profiles[question] @ found[start:end].T
        return out

    @cached_property
    def session_content(self) -> Column:
        """float32 (2, R): share of the session's newest items that share a term; whether it has the most frequent."""
        offsets, found, session = self.candidates.offsets, self.candidate_content, self.session
        out = np.zeros((2, len(found)), np.float32)
        some = np.flatnonzero(session.events)
        if not len(some) or not len(found):
            return out
        mine = self.items.content.take(session.items, axis=0)
        starts = np.searchsorted(session.owner, some)
        terms = np.zeros((len(self.histories), mine.shape[1]), np.float32)
        terms[some] = np.add.reduceat((mine > 0).astype(np.float32), starts, axis=0)
        commonest = terms.argmax(axis=1)
        known = terms.max(axis=1) > 0  # of the session's items any has a term
        flat = np.arange(len(found)) * found.shape[1] + commonest.take(self.owner)
        out[1] = (found.ravel().take(flat) > 0) & known.take(self.owner)
        for question, start, end in zip(some.tolist(), starts.tolist(), [*starts[1:].tolist(), len(mine)], strict=True):
            rows = slice(offsets[question], offsets[question + 1])
            shared = (found[rows] @ mine[start:end].T > 0).astype(np.float32)
            out[0, rows] = shared @ np.full(end - start, 1 / (end - start), np.float32)
        return out

    def _taste(self, vectors: NDArray[np.float32]) -> Column:
        """float32 (B, d): the weighted mean of the recent entries' vectors; zeros for an empty history."""
        out = np.zeros((len(self.recent), vectors.shape[1]), np.float32)
        some = self.recent.lengths > 0
        if some.any():
            weighted = vectors.take(self.recent.items, axis=0) * self.recent_weights[:, None]
            out[some] = np.add.reduceat(weighted, self.recent.offsets[:-1][some], axis=0)
        return out

    @cached_property
    def with_history(self) -> Column:
        """float32 (R,): 1 where the question has a history, else 0."""
        return (self.histories.lengths > 0).astype(np.float32).take(self.owner)

    def per_question(self, values: NDArray[np.floating[Any]]) -> Column:
        """Values (B,) spread over the candidates: float32 (1, R)."""
        return values.astype(np.float32).take(self.owner)[None, :]
