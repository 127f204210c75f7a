"""Inner-product search over item vectors: FAISS, planned by how many rows the filter lets through."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from app.errors import BundleError
from app.models.interactions import Rows
from app.retrieval.allowed import Allowed, best, best_of_rows

# Up to here one exact pass over all vectors beats every index (measured: 9,066 × 64, 19 µs a query in batches of 16).
EXACT_ROWS = 50_000
# At most this share of the rows passes the filter: exact scores over just those.
FEW = 0.02
# Columns are padded to a multiple of this: OpenBLAS sums the columns of a last, partial tile in another order.
TILE = 16
# Up to so many queries the matrix is scored in slices of at most so many multiplications: there OpenBLAS reads it where
# it lies; beyond, it copies the whole of it first, which for one query is five sixths of the time.
FEW_QUERIES = 8
SLICE = 1_000_000
SEARCHED = 0.03  # share of an IVF index's lists that a query looks into


class VectorIndex:
    """Item vectors (n, d) searched by inner product.

    Up to EXACT_ROWS the whole matrix is scored; above, a FAISS IVF index with a selector.
    """

    def __init__(self, vectors: NDArray[np.float32], index: Any = None) -> None:
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.index = index  # a FAISS IVF index, or None: score everything
        self._columns = np.zeros((self.vectors.shape[1], -(-len(self.vectors) // TILE) * TILE), np.float32)  # (d, n)
        self._columns[:, : len(self.vectors)] = self.vectors.T

    def __len__(self) -> int:
        return len(self.vectors)

    def scores(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (B, d) -> float32 (B, n), exact; the same numbers alone or in a batch."""
        count, width = queries.shape
        # BLAS sums a single row in another order.
        rows = queries if count != 1 else np.concatenate([queries, np.zeros_like(queries)])
        whole = self._columns.shape[1]
        few = max(SLICE // (len(rows) * width) // TILE, 1) * TILE if 0 < len(rows) <= FEW_QUERIES else max(whole, 1)
        found = np.empty((len(rows), whole), np.float32)
        for start in range(0, whole, few):
            np.matmul(rows, self._columns[:, start : start + few], out=found[:, start : start + few])
        return found[:count, : len(self)]

    def search(self, queries: NDArray[np.float32], k: int, allowed: Allowed) -> list[tuple[Rows, NDArray[np.float32]]]:
        """Per query at most k allowed (rows, scores), best first. A zero query finds nothing."""
        asked: NDArray[np.bool_] = (queries != 0).any(axis=1)
        if self.exact:
            scores = self.scores(queries)
            allowed.block(scores)
            scores[~asked] = -np.inf
            return best_of_rows(scores, [k] * len(queries), [-np.inf] * len(queries))
        nothing = np.empty(0, np.int32), np.empty(0, np.float32)
        return [
            self._search_one(query, k, allowed, question) if asked[question] else nothing
            for question, query in enumerate(queries)
        ]

    @property
    def exact(self) -> bool:
        """Whether a search scores every row."""
        return self.index is None

    def _search_one(
        self, query: NDArray[np.float32], k: int, allowed: Allowed, question: int
    ) -> tuple[Rows, NDArray[np.float32]]:
        passing = self._passing(allowed, question)
        if passing is not None and passing.sum() <= max(FEW * len(self), 4 * k):
            rows = np.flatnonzero(passing).astype(np.int32)
            values = self.vectors[rows] @ query
            order = best(values, k, -np.inf)
            return rows[order], values[order]
        nprobe = max(1, int(self.index.nlist * SEARCHED))
        library: Any = faiss  # its type stubs lack these classes
        selector = None
        if passing is not None:
            share = passing.mean()
            nprobe = min(self.index.nlist, int(nprobe / max(share, 0.02)))
            selector = library.IDSelectorBitmap(np.packbits(passing, bitorder="little"))
        parameters = library.SearchParametersIVF(nprobe=nprobe, sel=selector)
        values, ids = self.index.search(query[None], k, params=parameters)
        kept = ids[0] >= 0
        return ids[0][kept].astype(np.int32), values[0][kept]

    def _passing(self, allowed: Allowed, question: int) -> NDArray[np.bool_] | None:
        banned, mask = allowed.banned_by(question), allowed.mask(question)
        if mask is None and not len(banned):
            return None
        passing = np.ones(len(self), np.bool_) if mask is None else mask[: len(self)].copy()
        passing[banned[banned < len(self)]] = False
        return passing

    def save(self, file: Path) -> None:
        """Writes the vectors (and lists) as one FAISS index file."""
        index: Any = self.index
        if index is None:
            index = faiss.IndexFlatIP(self.vectors.shape[1])
            index.add(self.vectors)
        faiss.write_index(index, str(file))

    @classmethod
    def load(cls, file: Path) -> "VectorIndex":
        """Reads what `save` wrote.

        Raises:
            BundleError: not a FAISS index.
        """
        try:
            index: Any = faiss.read_index(str(file))
        except RuntimeError as error:
            raise BundleError(f"{file}: found no FAISS index, wanted one ({str(error).splitlines()[0]})") from None
        if isinstance(index, faiss.IndexFlat):
            return cls(index.reconstruct_n(0, index.ntotal))
        index.make_direct_map()
        return cls(index.reconstruct_n(0, index.ntotal), index)


def build_index(vectors: NDArray[np.float32], seed: int = 0) -> VectorIndex:
    """Exact up to EXACT_ROWS rows, IVF-flat above (4·√n lists, trained by k-means with `seed`)."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if len(vectors) <= EXACT_ROWS:
        return VectorIndex(vectors)
    width = vectors.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(width), width, int(4 * np.sqrt(len(vectors))), faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = seed + 1
    index.train(vectors)
    index.add(vectors)
    return VectorIndex(vectors, index)
