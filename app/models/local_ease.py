"""EASE for catalogues whose dense matrices do not fit: each item is explained by the few that go with it most."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.sparse import csr_matrix

BLOCK = 2048  # rows of the Gram matrix made at once
_REMEMBERED = 4  # entries of a Gram row that are kept, in neighbourhoods


def local_weights(seen: csr_matrix, l2: float, size: int) -> csr_matrix:
    """float32 (n_items, n_items), row j: the weights by which other items speak for item j, at most `size` of them.

    For each item the regression of EASE is solved on its neighbourhood alone, the `size` items whose regression on it
    alone explains most of it; between neighbours the largest entries of the Gram matrix count and the others are taken
    for 0. With a neighbourhood of all items these are the columns of EASE's B.
    Paper: Steck, "Markov random fields for collaborative filtering", NeurIPS 2019 (its sparse approximation, r = 0).

    Args:
        seen: float32 (rows, n_items), weighted users × items.
        l2: added to the diagonal of the Gram matrix.
        size: of a neighbourhood.
    """
    n_items = seen.shape[1]
    gram, diagonal = _largest(seen, l2, min(_REMEMBERED * size, n_items))
    place = np.full(n_items, -1)
    indptr, indices, data = [0], [], []
    for item in range(n_items):
        others, common = _row(gram, item)
        near = others[np.argsort(-common / np.sqrt(diagonal[others]), kind="stable")[:size]]
        if len(near):
            place[near] = np.arange(len(near))
            among = _among(gram, near, place)
            among[np.diag_indices_from(among)] = diagonal[near]
            target = np.zeros(n_items, np.float32)
            target[others] = common
            indices.append(near)
            data.append(_solved(among, target[near]))
            place[near] = -1
        indptr.append(indptr[-1] + len(near))
    nothing = [np.zeros(0, np.int32)]
    return csr_matrix(
        (np.concatenate([*data, *nothing]).astype(np.float32), np.concatenate([*indices, *nothing]), indptr),
        shape=(n_items, n_items),
    )


def _largest(seen: csr_matrix, l2: float, n: int) -> tuple[csr_matrix, NDArray[np.float32]]:
    """Of each row of X'X the n entries that explain most, without the diagonal; and the diagonal + l2."""
    by_item = seen.T.tocsr()
    diagonal = (np.asarray(seen.multiply(seen).sum(axis=0)).ravel() + l2).astype(np.float32)
    scale = 1 / np.sqrt(diagonal)
    counts, indices, data = [], [], []
    for start in range(0, seen.shape[1], BLOCK):
        block = (by_item[start : start + BLOCK] @ seen).tocsr()
        for row in range(block.shape[0]):
            others, common = _row(block, row)
            kept = np.flatnonzero(others != start + row)
            if len(kept) > n:
                strength = np.abs(common[kept]) * scale[others[kept]]
                kept = kept[np.argpartition(-strength, n - 1)[:n]]
            counts.append(len(kept))
            indices.append(others[kept])
            data.append(common[kept])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    matrix = csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=(len(counts), len(counts)))
    return matrix, diagonal


def _row(matrix: csr_matrix, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    some = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[some], matrix.data[some]


def _among(gram: csr_matrix, near: NDArray[np.int32], place: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 (n, n): the entries between n items, numbered by `place`, from whichever of the two rows has them."""
    starts, ends = gram.indptr[near].astype(np.int64), gram.indptr[near + 1].astype(np.int64)
    lengths = ends - starts
    index = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    column = place[gram.indices[index]]
    there = np.flatnonzero(column >= 0)
    among = np.zeros((len(near), len(near)))
    among[np.repeat(np.arange(len(near)), lengths)[there], column[there]] = gram.data[index[there]]
    return np.where(among != 0, among, among.T)


def _solved(among: NDArray[np.float64], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """The regression; with a larger diagonal where what was left out makes the matrix indefinite."""
    for _ in range(20):
        try:
            return np.asarray(solve(among, target, assume_a="pos"))
        except np.linalg.LinAlgError:
            among[np.diag_indices_from(among)] *= 1.5
    return np.zeros(len(target))


def transposed_blocks(weights: csr_matrix, columns: NDArray[np.float32], size: int) -> Iterator[csr_matrix]:
    """Rows of the transpose, each column times its factor, some at a time."""
    speaks = weights.T.tocsr()
    speaks.data *= columns[speaks.indices]
    for start in range(0, speaks.shape[0], size):
        yield speaks[start : start + size]
