"""One retrieval order from the lists of several sources."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Rows
from app.retrieval.query import Candidates

Found = tuple[Rows, NDArray[np.float32]]  # rows and scores of one source for one question, best first

# Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): sum over sources of weight / (DAMPING + rank).
DAMPING = 20.0


def merge(found: Sequence[Sequence[Found]], sizes: Sequence[int], limit: int) -> Candidates:
    """Fuses `found[source][question]` into at most `limit` candidates a question.

    The order is that of the weighted reciprocal ranks, a source's weight being its share of all candidates asked for
    (`sizes`); the lower row goes first among equals, so a question's answer does not depend on its batch.
    """
    n_questions = len(found[0]) if found else 0
    lists = [one for source in found for one in source]
    lengths = np.array([len(rows) for rows, _ in lists], np.int64)
    rows = np.concatenate([rows for rows, _ in lists]) if lists else np.empty(0, np.int32)
    scores = np.concatenate([values for _, values in lists]) if lists else np.empty(0, np.float32)
    owner = np.repeat(np.tile(np.arange(n_questions), len(found)), lengths)
    source = np.repeat(np.repeat(np.arange(len(found)), n_questions), lengths)
    ranks = (np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1).astype(np.int32)

    keys, place = np.unique(owner << 32 | rows, return_inverse=True)
    score_table = np.zeros((len(keys), len(found)), np.float32)
    rank_table = np.zeros((len(keys), len(found)), np.int32)
    score_table[place, source] = scores
    rank_table[place, source] = ranks
    weights = np.array(sizes, np.float64) / max(sum(sizes), 1)
    order, offsets = _order(keys >> 32, fused(rank_table, weights), n_questions, limit)
    return Candidates((keys[order] & 0xFFFFFFFF).astype(np.int32), offsets, score_table[order], rank_table[order])


def fused(ranks: NDArray[np.int32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (R,) in [0, 1): the weighted reciprocal ranks of int32 (R, S) ranks (0: not named)."""
    shares = np.where(ranks > 0, weights / (DAMPING + ranks), 0.0)
    total: NDArray[np.float64] = shares.sum(axis=1)
    return total


def _order(
    owner: NDArray[np.int64], values: NDArray[np.float64], n_questions: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places sorted by (owner, value falling, place), at most `limit` an owner; and their offsets.

    One sort of integers: question, value and place packed into 64 bits.
    """
    steps = ((1.0 - values) * (1 << 30)).astype(np.int64)
    order = np.sort(owner << 52 | steps << 22 | np.arange(len(owner))) & ((1 << 22) - 1)
    counts = np.bincount(owner, minlength=n_questions)
    starts = np.cumsum(counts) - counts
    within = np.arange(len(owner)) - np.repeat(starts, counts)
    kept = np.minimum(counts, limit)
    return order[within < limit], np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
