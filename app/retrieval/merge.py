"""One retrieval order from the lists of several sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Rows
from app.retrieval.query import Candidates

Found = tuple[Rows, NDArray[np.float32]]  # rows and scores of one source for one question, best first

# Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): sum over sources of weight / (DAMPING + rank).
DAMPING = 20.0
STEPS = (1 << 28) - 1  # values that differ by less count as equal


def merge(found: Sequence[Sequence[Found]], sizes: Sequence[int], limit: int) -> Candidates:
    """Fuses `found[source][question]` into at most `limit` candidates a question.

    The order is that of the weighted reciprocal ranks, a source's weight being its share of all candidates asked for
    (`sizes`); the lower row goes first among equals, so a question's answer does not depend on its batch.
    """
    n_questions = len(found[0]) if found else 0
    lists = [one for source in found for one in source]
    if not lists:
        return Candidates(
            np.empty(0, np.int32), np.zeros(1, np.int64), np.empty((0, 0), np.float32), np.empty((0, 0), np.int32)
        )
    lengths = np.array([len(rows) for rows, _ in lists], np.int64)
    starts = lengths.cumsum() - lengths
    list_of = np.arange(len(lists)).repeat(lengths)
    # One sort of integers (question, row, place in the lists) brings the votes for each candidate together.
    total = len(list_of)
    bits = max(total - 1, 1).bit_length()
    keys = (list_of % n_questions) << 24 | np.concatenate([rows for rows, _ in lists])
    keys = keys << bits | np.arange(total)
    keys.sort()
    place = keys & ((1 << bits) - 1)
    pairs = keys >> bits
    first = np.ones(total, np.bool_)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    list_of = list_of[place]
    cell = (first.cumsum() - 1) * len(found) + list_of // n_questions
    pairs = pairs[first]
    scores = np.zeros((len(pairs), len(found)), np.float32)
    ranks = np.zeros((len(pairs), len(found)), np.int32)
    scores.reshape(-1)[cell] = np.concatenate([values for _, values in lists])[place]
    ranks.reshape(-1)[cell] = place - starts[list_of] + 1
    order, offsets = _order(pairs >> 24, fused(ranks, shares(sizes)), n_questions, limit)
    return Candidates((pairs[order] & 0xFFFFFF).astype(np.int32), offsets, scores[order], ranks[order])


def of_fewer(
    candidates: Candidates, columns: Sequence[int], sizes: Sequence[int], limit: int
) -> tuple[NDArray[np.int64], Candidates]:
    """What `merge` makes of some of the sources with shorter lists, from what it made of all: without asking again.

    Args:
        candidates: of all sources, nothing cut off, in rising rows within each question.
        columns: the sources to merge, in the order of the new columns.
        sizes: how many of each, at most as many as were merged.
        limit: candidates per question.

    Returns:
        the place of each in `candidates`, and they themselves.
    """
    ranks = candidates.ranks[:, columns]
    ranks[ranks > np.array(sizes)] = 0
    named = np.flatnonzero(ranks.any(axis=1))
    owner, ranks = candidates.owner[named], ranks[named]
    order, offsets = _order(owner, fused(ranks, shares(sizes)), len(candidates.offsets) - 1, limit)
    places, ranks = named[order], ranks[order]
    scores = np.where(ranks > 0, candidates.scores[places][:, columns], np.float32(0))
    return places, Candidates(candidates.rows[places], offsets, scores, ranks)


def fused(ranks: NDArray[np.int32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (R,) in [0, 1): the weighted reciprocal ranks of int32 (R, S) ranks (0: not named)."""
    total: NDArray[np.float64] = np.where(ranks > 0, weights / (DAMPING + ranks), 0.0).sum(axis=1)
    return total


def _order(
    owner: NDArray[np.int64], values: NDArray[np.float64], n_questions: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places sorted by (owner, value in [0, 1) falling, place), at most `limit` an owner; and their offsets."""
    places = np.arange(len(owner))
    steps = ((1.0 - values) * STEPS).astype(np.int64)  # 0 to STEPS
    bits = len(owner).bit_length()
    if n_questions.bit_length() + STEPS.bit_length() + bits < 64:
        order = (owner * (STEPS + 1) + steps) << bits | places
        order.sort()  # one sort of integers instead of three of places
        order &= (1 << bits) - 1
    else:
        order = np.lexsort((steps, owner))
    counts = np.bincount(owner, minlength=n_questions)
    offsets = np.zeros(n_questions + 1, np.int64)
    if (counts <= limit).all():
        np.cumsum(counts, out=offsets[1:])
        return order, offsets
    within = places - (counts.cumsum() - counts).repeat(counts)
    np.cumsum(np.minimum(counts, limit), out=offsets[1:])
    return order[within < limit], offsets


@dataclass(frozen=True, slots=True)
class Addition:
    """Rows to add to one question's candidates, in their order.

    Attributes:
        named: which sources speak for some of them: (column of the source, places in `rows`, their scores).
    """

    question: int
    rows: Rows
    named: Sequence[tuple[int, NDArray[np.int64], NDArray[np.float32]]] = ()

    @classmethod
    def of(cls, question: int, lists: Mapping[int, Found]) -> "Addition":
        """Of the lists of sources (by their columns; below 0: of none), a row that several name once."""
        rows = np.concatenate([found[0] for found in lists.values()])
        distinct, first = np.unique(rows, return_index=True)
        order = np.argsort(first)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))  # of each distinct row
        named = [
            (column, place[np.searchsorted(distinct, found[0])], found[1])
            for column, found in lists.items()
            if column >= 0
        ]
        return cls(question, distinct[order], named)


def extend(candidates: Candidates, additions: Sequence[Addition], sizes: Sequence[int]) -> Candidates:
    """Candidates with rows added (none of them there already), again in retrieval order.

    A row that a source speaks for takes its place by score in that source's list; others go last, in their order.
    """
    if not additions:
        return candidates
    owner, n_sources = candidates.owner, candidates.ranks.shape[1]
    lengths = [len(addition.rows) for addition in additions]
    scores = np.zeros((sum(lengths), n_sources), np.float32)
    ranks = np.zeros((sum(lengths), n_sources), np.int32)
    start = 0
    for addition, length in zip(additions, lengths, strict=True):
        for column, places, given in addition.named:
            first, last = candidates.offsets[addition.question], candidates.offsets[addition.question + 1]
            listed = candidates.scores[first:last, column][candidates.ranks[first:last, column] > 0]
            above = len(listed) - np.searchsorted(np.sort(listed), given, side="right")
            scores[start + places, column] = given
            ranks[start + places, column] = above + 1 + np.arange(len(given))
        start += length
    owner = np.concatenate([owner, np.repeat([addition.question for addition in additions], lengths)])
    rows = np.concatenate([candidates.rows, *(addition.rows for addition in additions)])
    scores, ranks = np.concatenate([candidates.scores, scores]), np.concatenate([candidates.ranks, ranks])
    order, offsets = _order(owner, fused(ranks, shares(sizes)), len(candidates.offsets) - 1, len(rows))
    return Candidates(rows[order], offsets, scores[order], ranks[order])


def take(candidates: Candidates, questions: Sequence[int]) -> Candidates:
    """The candidates of some of the questions, renumbered in the order given."""
    starts, ends = candidates.offsets[:-1][questions], candidates.offsets[1:][questions]
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return Candidates(candidates.rows[index], offsets, candidates.scores[index], candidates.ranks[index])


def shares(sizes: Sequence[int]) -> NDArray[np.float64]:
    """float64 (S,): each source's share of all candidates asked for."""
    return np.array(sizes, np.float64) / max(sum(sizes), 1)
