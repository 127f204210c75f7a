"""The item graph P = R'R of a user × item matrix, R normalised by both degrees: products with it, largest entries."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from app.models.interactions import Interactions

Dense = NDArray[np.float32]
USERS_AT_ONCE = 100_000  # rows of R multiplied at once: bounds what lies between the two halves of a product
PAIRS = 10_000_000  # multiplications for the rows of P made at once: bounds a block to about 300 MB
NOBODY = 1e-12  # stands for the degree of an item or user without events
SAMPLED = 256  # rows from which the size of what is kept is estimated


class ItemGraph:
    """P (n_items, n_items), p_ij = sum over users of r_ui r_uj, r_ui = w_ui / sqrt(d_u d_i), d the sums of weights.

    Its eigenvalues lie between 0 and 1.
    """

    def __init__(self, data: Interactions) -> None:
        shape = (data.n_users, data.n_items)
        users = csr_matrix((data.weights, (data.users, data.items)), shape=shape)
        self.degrees = np.maximum(np.asarray(users.sum(axis=0), np.float64).ravel(), NOBODY)
        of_users = np.maximum(np.asarray(users.sum(axis=1), np.float64).ravel(), NOBODY)
        users.data /= np.sqrt(of_users).repeat(np.diff(users.indptr)) * np.sqrt(self.degrees[users.indices])
        self._users = users.astype(np.float32)
        self._items = self._users.T.tocsr()
        self.n_items = data.n_items

    def powers(self, exponent: float) -> Dense:
        """float32 (n_items,): the items' degrees to a power; 1 for an item without an event."""
        return np.where(self.degrees > NOBODY, self.degrees, 1.0).astype(np.float32) ** np.float32(exponent)

    def __matmul__(self, block: Dense) -> Dense:
        """P times float32 (n_items, m)."""
        if self._users.shape[0] <= USERS_AT_ONCE:
            return np.asarray(self._items @ (self._users @ block))
        total = np.zeros(block.shape, np.float32)
        for start in range(0, self._users.shape[0], USERS_AT_ONCE):
            some = self._users[start : start + USERS_AT_ONCE]
            total += some.T @ (some @ block)
        return total

    def largest(self, per_row: int, factors: Dense, seed: int) -> csr_matrix:
        """float32 (n_items, n_items): P with its columns times `factors`, off the diagonal, its largest entries alone.

        About `per_row` × n_items of them: those above a size that so many of a sample of rows exceed.
        """
        least, counts, cols, values = self._least(per_row, factors, seed), [], [], []
        for start, end in self._cuts():
            row, col, value = self._entries(np.arange(start, end), factors)
            chosen = value > least
            counts.append(np.bincount(row[chosen], minlength=end - start))
            cols.append(col[chosen])
            values.append(value[chosen])
        indptr = np.concatenate([[0], np.concatenate(counts).cumsum()])
        shape = (self.n_items, self.n_items)
        return csr_matrix((np.concatenate(values), np.concatenate(cols), indptr), shape=shape, dtype=np.float32)

    def _entries(self, rows: NDArray[np.int64], factors: Dense) -> tuple[NDArray[np.int64], NDArray[np.int32], Dense]:
        """Row (counted in `rows`), column and value of the entries of some rows off the diagonal."""
        block = self._items[rows] @ self._users
        row = np.repeat(np.arange(len(rows)), np.diff(block.indptr))
        apart = block.indices != rows[row]
        cols = block.indices[apart]
        return row[apart], cols, block.data[apart] * factors[cols]

    def _least(self, per_row: int, factors: Dense, seed: int) -> float:
        some = np.sort(np.random.default_rng(seed).permutation(self.n_items)[:SAMPLED])
        values = self._entries(some, factors)[2]
        kept = per_row * len(some)
        if kept >= len(values):
            return 0.0
        return float(np.partition(values, len(values) - kept - 1)[len(values) - kept - 1])

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows of P that take about PAIRS multiplications each."""
        per_user = np.diff(self._users.indptr).astype(np.float64)
        work = np.concatenate([[0.0], np.cumsum(per_user[self._items.indices])])[self._items.indptr]
        start = 0
        while start < self.n_items:
            end = int(np.searchsorted(work, work[start] + PAIRS, side="right")) - 1
            end = min(max(end, start + 1), self.n_items)
            yield start, end
            start = end
