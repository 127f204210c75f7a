"""What the gateway asks a retriever, and what comes back: flat arrays, so that one hop carries many users."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.models.interactions import Histories, Rows


@dataclass(frozen=True, slots=True)
class Query:
    """A micro-batch of B questions to one bundle.

    Attributes:
        histories: B histories to retrieve for (the anchors, where a request names `items`).
        banned: int32 rows never to return, ragged: question b's are `banned[banned_offsets[b]:banned_offsets[b + 1]]`.
        banned_offsets: int64 (B + 1,).
        masks: bool (M, n_items), the distinct filters in the batch: which rows pass. M may be 0.
        mask_of: int32 (B,), the mask of each question, -1: no filter.
        mix: sources to ask and how many candidates from each: ((name, k), ...). S = len(mix).
        limit: candidates per question after merging.
    """

    histories: Histories
    banned: Rows
    banned_offsets: NDArray[np.int64]
    masks: NDArray[np.bool_]
    mask_of: NDArray[np.int32]
    mix: tuple[tuple[str, int], ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """R candidates for B questions, in retrieval order (best first) within each question, no row twice in one.

    Attributes:
        rows: int32 (R,), catalogue rows.
        offsets: int64 (B + 1,).
        scores: float32 (R, S), the source's own score; 0 where the source did not name the row.
        ranks: int32 (R, S), place in the source's list from 1; 0 where the source did not name the row.
    """

    rows: Rows
    offsets: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int32]

    @property
    def owner(self) -> NDArray[np.int64]:
        """int64 (R,): the question each candidate belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.offsets[1:] - self.offsets[:-1])
