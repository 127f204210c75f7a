"""EASE: a closed-form item-item regression without self-similarity."""

from collections.abc import Iterator
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import spotrf, spotri
from scipy.sparse import csr_matrix

from app.errors import MantaError
from app.models.candidate import Progress
from app.models.history_decay import HistoryDecay
from app.models.interactions import Catalogue, Interactions
from app.models.local_ease import local_weights, transposed_blocks
from app.models.neighbour_family import NeighbourFamily
from app.models.neighbour_table import NeighbourTable

BLOCK = 512  # rows of the item-item matrix made at once
NEIGHBOURHOOD = 200  # items that explain one where all are too many

# The diagonal of P, and its rows in blocks (the diagonal inside the blocks may be left out).
Inverse = tuple[NDArray[np.float32], Iterator[NDArray[np.float32]]]


class EaseParams(HistoryDecay):
    """Parameters of `ease`."""

    l2: float = Field(200.0, gt=0, description="Regularisation added to the diagonal of the Gram matrix.")
    piece: int = Field(
        100,
        ge=0,
        description="Users count as pieces of at most this many consecutive events: what goes together now; 0: whole.",
    )
    user_power: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A user (or piece) with n events counts n^-user_power: long histories say less per event.",
    )
    target_power: float = Field(
        0.2, ge=0, le=1, description="Columns are divided by the item's frequency to this power; high: less popular."
    )
    n_neighbours: int = Field(300, ge=1, le=100_000, description="Largest weights (by size) kept per item.")
    neighbourhood: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="Items that each is explained by; 0: all, exact. Null: all where the dense matrices are within "
        "`memory_limit_bytes`, else 200.",
    )
    memory_limit_bytes: int = Field(
        4_000_000_000, gt=0, description="Fitting is refused when its dense matrices would need more."
    )


class Ease(NeighbourFamily):
    """B = I - P / diag(P) with P = (X'X + l2 I)^-1, X the weighted user × item matrix; scores are decayed history × B.

    With fewer users than items the inverse goes through the users' side (Woodbury), exact and far cheaper; where dense
    matrices do not fit, each item is explained by the items that go with it most alone (`app.models.local_ease`).
    Searched: l2 30-1000, log; piece 0-200; user_power 0-0.5; target_power 0-0.4; place_tau 2-20, log; place_floor
    0-0.1.
    Papers: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019; Steck, "Markov random fields for
    collaborative filtering", NeurIPS 2019.
    """

    family: ClassVar[str] = "ease"
    params_type: ClassVar[type[EaseParams]] = EaseParams
    params: EaseParams

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits.

        Raises:
            MantaError: it would need more than `memory_limit_bytes`; nothing was allocated.
        """
        del catalogue, seed, progress
        rows, n_rows = data.users, data.n_users
        if self.params.piece:
            rows, n_rows = pieces(data, self.params.piece)
        size = self.params.neighbourhood
        if size is None:
            size = 0 if bytes_needed(data.n_items, n_rows) <= self.params.memory_limit_bytes else NEIGHBOURHOOD
        refuse_beyond(self.params.memory_limit_bytes, data.n_items, n_rows, size)
        self.n_items = data.n_items
        users = csr_matrix((data.weights, (rows, data.items)), shape=(n_rows, data.n_items))
        frequency = np.bincount(data.items, minlength=data.n_items)
        if self.params.user_power > 0:
            length = np.maximum(np.asarray(users.sum(axis=1)).ravel(), 1.0)
            users = users.multiply((length ** (-self.params.user_power / 2))[:, None]).tocsr()
        columns = (np.maximum(frequency, 1) ** -self.params.target_power).astype(np.float32)
        weights: Iterator[NDArray[np.float32] | csr_matrix]
        if size:
            weights = transposed_blocks(local_weights(users, self.params.l2, size), columns, BLOCK)
        else:
            inverse = inverse_by_users if n_rows < data.n_items else inverse_by_items
            diagonal, blocks = inverse(users, self.params.l2)
            weights = (block * columns for block in _without_self(blocks, diagonal))
        self._table = NeighbourTable.of_blocks(weights, self.params.n_neighbours, signed=True)
        return self


def pieces(data: Interactions, size: int) -> tuple[NDArray[np.int32], int]:
    """int32 (N,), the piece of at most `size` consecutive events of a user that an event is in; how many there are."""
    order = np.argsort(data.users, kind="stable")
    users = data.users[order]
    first = np.searchsorted(users, users, side="left")
    place = (np.arange(len(users)) - first) // size
    new = np.ones(len(users), bool)
    new[1:] = (users[1:] != users[:-1]) | (place[1:] != place[:-1])
    numbers = np.empty(len(users), np.int32)
    numbers[order] = np.cumsum(new) - 1
    return numbers, max(int(new.sum()), 1)


def bytes_needed(n_items: int, n_users: int, size: int = 0) -> int:
    """Memory of a fit: exact (`size` 0), or with neighbourhoods of that size."""
    if size:
        return 12 * n_items * size * 8  # the Gram matrix's largest entries, pieces and whole; weights, and transposed
    by_users = 8 * n_users * (2 * n_users + 3 * n_items)  # float64 kernel and factor, users × items thrice
    by_items = 4 * 3 * n_items * n_items  # float32 Gram matrix, inverse, and what Cholesky needs beside them
    return (by_users if n_users < n_items else by_items) + 4 * 8 * BLOCK * n_items


def refuse_beyond(limit_bytes: int, n_items: int, n_users: int, size: int = 0) -> None:
    """Refuses a fit that passes the limit.

    Raises:
        MantaError: with the bytes needed.
    """
    needed = bytes_needed(n_items, n_users, size)
    if needed > limit_bytes:
        kind = f"matrices with a neighbourhood of {size}" if size else "dense matrices"
        raise MantaError(
            f"ease: {n_items} items and {n_users} users need {needed / 1e9:.1f} GB of {kind}, "
            f"wanted at most memory_limit_bytes = {limit_bytes / 1e9:.1f} GB"
        )


def inverse_by_users(users: csr_matrix, l2: float) -> Inverse:
    """P = (X'X + l2 I)^-1 = (I - X'(XX' + l2 I)^-1 X) / l2."""
    kernel = (users @ users.T).toarray().astype(np.float64)
    kernel[np.diag_indices_from(kernel)] += l2
    dense = users.toarray().astype(np.float64)
    solved = cho_solve(cho_factor(kernel, lower=True, overwrite_a=True), dense)
    diagonal = ((1.0 - (dense * solved).sum(axis=0)) / l2).astype(np.float32)
    left, right = (dense / -l2).astype(np.float32), solved.astype(np.float32)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, users.shape[1], BLOCK):
            yield left[:, start : start + BLOCK].T @ right  # off the diagonal only

    return diagonal, blocks()


def inverse_by_items(users: csr_matrix, l2: float) -> Inverse:
    """P = (X'X + l2 I)^-1, by a Cholesky factor of the Gram matrix."""
    gram = (users.T @ users).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += np.float32(l2)
    factor, failed = spotrf(gram.T, lower=1, overwrite_a=1)
    if failed:
        raise MantaError(f"ease: found a Gram matrix that has no Cholesky factor with l2 = {l2:g}, wanted a larger l2")
    inverse, _ = spotri(factor, lower=1, overwrite_c=1)  # half the work of solving for the identity
    starts = range(0, len(inverse), BLOCK)
    for start in starts:  # only the lower half was made
        end = start + BLOCK
        inverse[start:end, end:] = inverse[end:, start:end].T
        square = np.tril(inverse[start:end, start:end])
        inverse[start:end, start:end] = square + np.tril(square, -1).T
    return np.diagonal(inverse).copy(), (inverse[start : start + BLOCK] for start in starts)


def _without_self(
    blocks: Iterator[NDArray[np.float32]], diagonal: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Blocks of rows of B = -P / diag(P) (columns divided by the diagonal), with a diagonal of 0."""
    start = 0
    for block in blocks:
        weights = block / -diagonal
        weights[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        start += len(block)
        yield weights
