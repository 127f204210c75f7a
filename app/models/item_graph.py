"""The item graph P = R'R of a user × item matrix, R normalised by both degrees: products with it, largest entries."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from app.models.interactions import Interactions

Dense = NDArray[np.float32]
USERS_AT_ONCE = 100_000  # rows of R multiplied at once: bounds what lies between the two halves of a product
PAIRS = 10_000_000  # multiplications for the rows of P made at once: bounds a block to about 300 MB
NOBODY = 1e-12  # stands for the degree of an item or user without events
SAMPLED = 256  # rows from which the size of what is kept is estimated


@dataclass(frozen=True, slots=True)
class Kept:
    """The largest entries of P, and sums over all of it.

    Attributes:
        entries: float32 (n_items, n_items), off the diagonal, columns times the factors asked with.
        diagonal: float32 (n_items,), of P.
        squares: the sum of P's squared entries.
    """

    entries: csr_matrix
    diagonal: Dense
    squares: float


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

    def largest(self, per_row: int, factors: Dense, seed: int) -> Kept:
        """About `per_row` × n_items entries: the largest times their column's factor, as a sample of rows has them."""
        least, counts, cols, values = self._least(per_row, factors, seed), [], [], []
        diagonal, squares = np.zeros(self.n_items, np.float32), 0.0
        for start, end in self._cuts():
            block = self._items[start:end] @ self._users
            squares += float(np.square(block.data, dtype=np.float64).sum())
            row = np.repeat(np.arange(start, end), np.diff(block.indptr))
            own = block.indices == row
            diagonal[row[own]] = block.data[own]
            value = block.data * factors[block.indices]
            chosen = (value > least) & ~own
            counts.append(np.bincount(row[chosen] - start, minlength=end - start))
            cols.append(block.indices[chosen])
            values.append(value[chosen])
        indptr = np.concatenate([[0], np.concatenate(counts).cumsum()])
        shape = (self.n_items, self.n_items)
        entries = csr_matrix((np.concatenate(values), np.concatenate(cols), indptr), shape=shape, dtype=np.float32)
        return Kept(entries, diagonal, squares)

    def _least(self, per_row: int, factors: Dense, seed: int) -> float:
        some = np.random.default_rng(seed).permutation(self.n_items)[:SAMPLED]
        block = self._items[np.sort(some)] @ self._users
        values, kept = block.data * factors[block.indices], (per_row + 1) * len(some)  # the diagonal is among them
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
