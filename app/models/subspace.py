"""The largest eigenpairs of a symmetric matrix that is only given as a product; the best product of lower rank."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Dense = NDArray[np.float32]
OVERSAMPLED = 32  # directions beyond those asked for, that the last of these come out well
DROPPED = 1e-6  # directions shorter than this share of the longest are none


def leading_eigenpairs(
    product: Callable[[Dense], Dense], size: int, k: int, *, passes: int, seed: int
) -> tuple[Dense, Dense]:
    """float32 (j,) the j <= k largest eigenvalues, falling, and float32 (size, j) their vectors.

    Subspace iteration from a random start, then Rayleigh-Ritz (Halko, Martinsson, Tropp, SIAM Review 2011); exact where
    k + OVERSAMPLED reaches the size. Products are taken `passes` + 1 times.

    Args:
        product: float32 (size, m) -> the matrix times it; the matrix is positive semi-definite.
        size: of the matrix.
        k: eigenpairs wanted.
        passes: more of them separate close eigenvalues better.
        seed: of the start.
    """
    width = min(size, k + OVERSAMPLED)
    if width == size:
        basis = np.eye(size, dtype=np.float32)
    else:
        basis = np.random.default_rng(seed).standard_normal((size, width), dtype=np.float32)
        for _ in range(passes):
            basis = orthonormal(product(basis))
    image = product(basis)
    values, turn = np.linalg.eigh((basis.T @ image).astype(np.float64))
    first = np.argsort(-values, kind="stable")[:k]
    first = first[values[first] > _least(values)]
    return values[first].astype(np.float32), basis @ turn[:, first].astype(np.float32)


def best_product(left: Dense, right: Dense, k: int) -> tuple[Dense, Dense]:
    """float32 (n, j) and (m, j), j <= k: the nearest to left @ right.T (Frobenius) of rank k.

    Args:
        left, right: float32 (n, w) and (m, w).
        k: the rank wanted.
    """
    lengths, turn = np.linalg.eigh((left.T @ left).astype(np.float64))
    kept = lengths > _least(lengths)
    root, turn = np.sqrt(lengths[kept]), turn[:, kept]  # left = Q (turn root)' with orthonormal Q
    inner = root[:, None] * (turn.T @ (right.T @ right).astype(np.float64) @ turn) * root
    energy, directions = np.linalg.eigh(inner)
    first = np.argsort(-energy, kind="stable")[:k]
    directions = directions[:, first]
    return left @ (turn / root @ directions).astype(np.float32), right @ (turn * root @ directions).astype(np.float32)


def orthonormal(block: Dense) -> Dense:
    """An orthonormal basis of the columns' span, by the eigenvectors of their inner products; of lower rank: fewer."""
    values, turn = np.linalg.eigh((block.T @ block).astype(np.float64))
    kept = values > _least(values)
    basis: Dense = block @ (turn[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    return basis


def _least(values: NDArray[np.float64]) -> float:
    """What an eigenvalue must exceed to be one."""
    return DROPPED * float(np.maximum(values.max(initial=0.0), np.finfo(np.float32).tiny))
