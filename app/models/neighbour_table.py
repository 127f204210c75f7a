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
        indices: int32 (E,), never i itself in row i.
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
    def of_dense(cls, blocks: Iterable[NDArray[np.float32]], n_neighbours: int, *, signed: bool) -> "NeighbourTable":
        """Keeps the `n_neighbours` strongest of each row: the largest values, or with `signed` the largest sizes.

        Args:
            blocks: float32 (b, n_items) each, rows in order; the diagonal should be 0. Zeros are never kept.
            n_neighbours: entries kept a row at most.
            signed: negative values may be kept too.
        """
        counts, indices, data = [], [], []
        for block in blocks:
            n = min(n_neighbours, block.shape[1])
            strength = np.abs(block) if signed else block
            kept = np.argpartition(-strength, n - 1, axis=1)[:, :n].astype(np.int32)
            values = np.take_along_axis(block, kept, axis=1)
            order = np.lexsort((kept, -values), axis=1)
            kept, values = np.take_along_axis(kept, order, axis=1), np.take_along_axis(values, order, axis=1)
            useful = values != 0 if signed else values > 0
            counts.append(useful.sum(axis=1))
            indices.append(kept[useful])
            data.append(values[useful])
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
        return cls(indptr, np.concatenate(indices), np.concatenate(data).astype(np.float32))

    @classmethod
    def of_sparse(cls, matrix: csr_matrix, n_neighbours: int, *, rows: int = 2048) -> "NeighbourTable":
        """Keeps the `n_neighbours` largest positive values of each row; the diagonal is left out."""
        counts, indices, data = [], [], []
        for start in range(0, matrix.shape[0], rows):
            block = matrix[start : start + rows].tocoo()
            useful = (block.data > 0) & (block.row + start != block.col)
            row, col, value = block.row[useful], block.col[useful], block.data[useful].astype(np.float32)
            order = np.lexsort((col, -value, row))
            row, col, value = row[order], col[order], value[order]
            held = np.bincount(row, minlength=block.shape[0])
            place = np.arange(len(row)) - np.repeat(np.cumsum(held) - held, held)
            top = place < n_neighbours
            counts.append(np.minimum(held, n_neighbours))
            indices.append(col[top].astype(np.int32))
            data.append(value[top])
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
        return cls(indptr, np.concatenate(indices), np.concatenate(data))
