"""Alternating least squares with a regularisation of each row's own, over implicit's conjugate gradients."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from implicit.cpu._als import least_squares_cg
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

MOST_BUCKETS = 8
SPAN = 1.1


class Side:
    """The users, or the items, in the order of their regularisation, cut into buckets of about the same.

    implicit takes one regularisation a call, and each call multiplies the other side's factors with themselves: so
    rows whose regularisation lies within a tenth, or an eighth of the whole range on a log scale, share the mean.
    """

    def __init__(self, confidences: csr_matrix, l2: NDArray[np.float64]) -> None:
        """Args:
        confidences: float32 (n, m), sparse.
        l2: float64 (n,), > 0, ascending.
        """
        self._logs = np.log(l2)
        self.buckets = list(self._cut())
        self._rows = [confidences[start:end] for start, end, _ in self.buckets]

    def _cut(self) -> Iterator[tuple[int, int, float]]:
        """(first row, row after the last, regularisation) of each bucket."""
        if not len(self._logs):
            return
        width = max(np.log(SPAN), (self._logs[-1] - self._logs[0]) / MOST_BUCKETS * (1 + 1e-9))
        places = ((self._logs - self._logs[0]) / width).astype(np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
        for start, end in itertools.pairwise(bounds):
            yield start, end, float(np.exp(self._logs[start:end].mean()))

    def solve(self, own: NDArray[np.float32], other: NDArray[np.float32]) -> None:
        """Three steps of conjugate gradients for every row of `own`, float32 (n, d), in place; `other`: (m, d)."""
        # implicit has threads of its own and is far slower when BLAS brings more.
        with threadpool_limits(1, user_api="blas"):
            for rows, (start, end, l2) in zip(self._rows, self.buckets, strict=True):
                least_squares_cg(rows, own[start:end], other, l2, num_threads=0)


def alternate(
    confidences: csr_matrix,
    l2_users: NDArray[np.float64],
    l2_items: NDArray[np.float64],
    n_factors: int,
    seed: int,
    begin: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """The items' factors, float32 (n_items, n_factors), after each pass; ends never. Those given stay as they are.

    Args:
        confidences: float32 (n_users, n_items): the confidence that an event was meant, >= 1 where there was one.
        l2_users, l2_items: > 0, the regularisation of each row.
        begin: gets the items' factors as drawn, and gives those to begin with; absent: the drawn.
    """
    by_user, by_item = np.argsort(l2_users, kind="stable"), np.argsort(l2_items, kind="stable")
    ordered = confidences[by_user][:, by_item].tocsr()
    users, items = Side(ordered, l2_users[by_user]), Side(ordered.T.tocsr(), l2_items[by_item])
    rng = np.random.default_rng(seed)
    x = rng.random((len(by_user), n_factors), np.float32) * np.float32(0.01)
    y = rng.random((len(by_item), n_factors), np.float32) * np.float32(0.01)
    if begin is not None:
        y = begin(y)[by_item]
    while True:
        users.solve(x, y)
        items.solve(y, x)
        found = np.empty_like(y)
        found[by_item] = y
        yield found
