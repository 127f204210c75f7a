"""Item statistics as of one time: decayed counts, ages, and what tends to follow what. Never looks ahead."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from app.errors import BundleError
from app.models.interactions import Interactions, Times

DAY_MS = 86_400_000.0
FOLLOW_WINDOW = 5  # places ahead that count as following
FOLLOW_KEPT = 48  # strongest followers kept per item


@dataclass(frozen=True, slots=True)
class ItemStatistics:
    """Statistics of n_items items from the events before `as_of`.

    Attributes:
        as_of: milliseconds since 1970; every counted event is earlier.
        table: float32 (n_items + 1, H + 2): for each half-life log1p(decayed count / mean decayed count), then
            log1p(count), then mean event weight. The last row, zeros, stands for items that came later.
        first: int64 (n_items + 1,): time of the first event; `as_of` for items without one.
        follow_indptr, follow_items, follow_scores: CSR over n_items rows: how strongly an item followed within
            FOLLOW_WINDOW places of the same user's history, cosine-normalised.
    """

    as_of: int
    table: NDArray[np.float32]
    first: Times
    follow_indptr: NDArray[np.int64]
    follow_items: NDArray[np.int32]
    follow_scores: NDArray[np.float32]

    @property
    def n_items(self) -> int:
        return len(self.table) - 1

    @classmethod
    def of(
        cls, interactions: Interactions, half_lives_days: Sequence[float], as_of: int | None = None
    ) -> "ItemStatistics":
        """From the events before `as_of` (milliseconds); None: all of them."""
        end = interactions.end if as_of is None else as_of
        seen = interactions.before(end)
        n = seen.n_items
        count = np.bincount(seen.items, minlength=n)
        age_days = (end - seen.times) / DAY_MS
        table = np.zeros((n + 1, len(half_lives_days) + 2), np.float32)
        for place, half_life in enumerate(half_lives_days):
            decayed = np.bincount(seen.items, np.exp2(-age_days / half_life), minlength=n)
            table[:n, place] = np.log1p(decayed / max(decayed.sum() / max((count > 0).sum(), 1), 1e-9))
        table[:n, -2] = np.log1p(count)
        table[:n, -1] = np.bincount(seen.items, seen.weights, minlength=n) / np.maximum(count, 1)
        first = np.full(n + 1, end, np.int64)
        np.minimum.at(first, seen.items, seen.times)
        follows = _follows(seen, count)
        return cls(end, table, first, follows.indptr.astype(np.int64), follows.indices.astype(np.int32), follows.data)

    def save(self, file: Path) -> None:
        """Writes one safetensors file."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        save_file({**tensors, "as_of": np.array([self.as_of], np.int64)}, file)

    @classmethod
    def load(cls, file: Path) -> "ItemStatistics":
        """Reads what `save` wrote.

        Raises:
            BundleError: tensors are missing or their shapes contradict each other.
        """
        tensors = load_file(file)
        if sorted(tensors) != sorted((*_TENSORS, "as_of")):
            raise BundleError(f"{file}: found tensors {sorted(tensors)}, wanted {sorted((*_TENSORS, 'as_of'))}")
        n = len(tensors["table"]) - 1
        if n < 0 or len(tensors["first"]) != n + 1 or len(tensors["follow_indptr"]) != n + 1:
            raise BundleError(f"{file}: found tensors of different lengths, wanted n_items + 1 rows in each")
        return cls(int(tensors.pop("as_of")[0]), **tensors)


_TENSORS = ("table", "first", "follow_indptr", "follow_items", "follow_scores")


def _follows(seen: Interactions, count: NDArray[np.int64]) -> sparse.csr_matrix:
    """CSR (n, n): weighted counts of 'j came 1 to FOLLOW_WINDOW places after i' over sqrt(count i * count j)."""
    n = seen.n_items
    order = np.argsort(seen.users, kind="stable")
    users, items = seen.users[order], seen.items[order]
    total = sparse.csr_matrix((n, n), dtype=np.float32)
    for ahead in range(1, FOLLOW_WINDOW + 1):
        same = users[ahead:] == users[:-ahead]
        before, after = items[:-ahead][same], items[ahead:][same]
        weight = np.full(len(before), 1.0 / ahead, np.float32)
        total = total + sparse.csr_matrix((weight, (before, after)), shape=(n, n))
    scale = sparse.diags(1.0 / np.sqrt(np.maximum(count, 1) + 1.0)).astype(np.float32)
    total = (scale @ total @ scale).tocsr()
    total.setdiag(0)
    total.eliminate_zeros()
    return _strongest(total, FOLLOW_KEPT)


def _strongest(matrix: sparse.csr_matrix, kept: int) -> sparse.csr_matrix:
    """The `kept` largest entries of each row, strongest first; ties by column."""
    owner = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, owner))
    place = np.arange(len(order)) - matrix.indptr[owner]
    order = order[place < kept]
    indptr = np.concatenate([[0], np.cumsum(np.minimum(np.diff(matrix.indptr), kept))])
    data, indices = matrix.data[order].astype(np.float32), matrix.indices[order].astype(np.int32)
    return sparse.csr_matrix((data, indices, indptr), shape=matrix.shape)
