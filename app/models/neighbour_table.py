"""The item-item matrix of a NeighbourModel: at most n neighbours a row, strongest first."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from app.models.history_decay import history_matrix
from app.models.interactions import Histories

BATCH = 512  # histories scored at once: bounds the dense block to a few MB


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """CSR over items: row i lists what item i speaks for.

    Attributes:
        indptr: int64 (n_items + 1,).
        indices: int32 (E,), i itself in row i only where a family says that repeats count.
        data: float32 (E,), descending within a row.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]

    @property
    def n_items(self) -> int:
        return len(self.indptr) - 1

    def score(self, histories: Histories, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (B, n_items): the weighted sum of the rows of each history's items."""
        matrix = csr_matrix((self.data, self.indices, self.indptr), shape=(self.n_items, self.n_items))
        queries = history_matrix(histories, weights, self.n_items)
        scores = np.empty((len(histories), self.n_items), np.float32)
        for start in range(0, len(histories), BATCH):
            (queries[start : start + BATCH] @ matrix).toarray(out=scores[start : start + BATCH])
        return scores

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"indptr": self.indptr, "indices": self.indices, "data": self.data}

    @classmethod
    def of_sparse(cls, matrix: csr_matrix) -> "NeighbourTable":
        """All entries, each above 0, of a float32 (n_items, n_items) matrix."""
        row = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
        # Positive floats order as their bits do: one sort of integers instead of two of floats.
        order = np.argsort(row << 32 | 0x7F800000 - matrix.data.view(np.int32).astype(np.int64), kind="stable")
        return cls(matrix.indptr.astype(np.int64), matrix.indices[order].astype(np.int32), matrix.data[order])

    @classmethod
    def of_blocks(
        cls,
        blocks: Iterable[NDArray[np.float32] | csr_matrix],
        n_neighbours: int,
        *,
        signed: bool = False,
        diagonal: bool = False,
    ) -> "NeighbourTable":
        """Keeps the strongest of each row: the largest values above 0, or with `signed` the largest sizes.

        Args:
            blocks: float32 (b, n_items) each, dense or sparse, rows in order; zeros are never kept.
            n_neighbours: entries kept a row at most.
            signed: negative values may be kept too.
            diagonal: the item itself may be kept too.
        """
        counts, indices, data, start = [], [], [], 0
        for block in blocks:
            row, col, value = _strongest(block, n_neighbours + 1, signed)
            useful = (value != 0) if signed else (value > 0)
            useful &= diagonal | (row + start != col)
            row, col, value = _first_of_each_row(row[useful], col[useful], value[useful], n_neighbours, signed)
            counts.append(np.bincount(row, minlength=block.shape[0]))
            indices.append(col.astype(np.int32))
            data.append(value.astype(np.float32))
            start += block.shape[0]
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
        return cls(indptr, np.concatenate(indices), np.concatenate(data))


Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]  # row, column, value


def _strongest(block: NDArray[np.float32] | csr_matrix, n: int, signed: bool) -> Entries:
    """Entries of a block, of a dense one only the n strongest of each row; rows together, else in any order."""
    if not isinstance(block, np.ndarray):
        entries = block.tocoo()
        return entries.row.astype(np.int64), entries.col.astype(np.int64), entries.data
    n = min(n, block.shape[1])
    strength = -np.abs(block) if signed else -block
    kept = np.argpartition(strength, n - 1, axis=1)[:, :n]
    return np.repeat(np.arange(len(block)), n), kept.ravel(), np.take_along_axis(block, kept, axis=1).ravel()


def _first_of_each_row(
    row: NDArray[np.int64], col: NDArray[np.int64], value: NDArray[np.float32], n: int, signed: bool
) -> Entries:
    """The n strongest of each row, by value descending; equal values by column."""
    order = np.lexsort((col, -np.abs(value) if signed else -value, row))
    held = np.bincount(row, minlength=1)
    place = np.arange(len(row)) - np.repeat(np.cumsum(held) - held, held)
    top = order[place < n]
    row, col, value = row[top], col[top], value[top]
    order = np.lexsort((col, -value, row))
    return row[order], col[order], value[order]
