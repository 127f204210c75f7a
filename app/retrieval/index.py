"""Inner-product search over item vectors: FAISS, planned by how many rows the filter lets through."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from app.errors import BundleError
from app.models.interactions import Rows
from app.retrieval.allowed import Allowed, best

# Up to here one exact pass over all vectors beats every index (measured: 9,066 × 64, 19 µs a query in batches of 16).
EXACT_ROWS = 50_000
# At most this share of the rows passes the filter: exact scores over just those.
FEW = 0.02
# BLAS may sum in another order for another number of rows, so every call has the same: alone or in a batch is equal.
BLOCK = 4
SEARCHED = 0.03  # share of an IVF index's lists that a query looks into


class VectorIndex:
    """Item vectors (n, d) searched by inner product.

    Up to EXACT_ROWS the whole matrix is scored; above, a FAISS IVF index with a selector.
    """

    def __init__(self, vectors: NDArray[np.float32], index: Any = None) -> None:
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.index = index  # a FAISS IVF index, or None: score everything
        self._columns = np.ascontiguousarray(self.vectors.T)  # (d, n)

    def __len__(self) -> int:
        return len(self.vectors)

    def scores(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (B, d) -> float32 (B, n), exact; the same numbers alone or in a batch."""
        count, width = queries.shape
        padded = np.zeros((-(-count // BLOCK) * BLOCK, width), np.float32)
        padded[:count] = queries
        out = np.empty((len(padded), len(self)), np.float32)
        for start in range(0, len(padded), BLOCK):
            np.matmul(padded[start : start + BLOCK], self._columns, out=out[start : start + BLOCK])
        return out[:count]

    def search(self, queries: NDArray[np.float32], k: int, allowed: Allowed) -> list[tuple[Rows, NDArray[np.float32]]]:
        """Per query at most k allowed (rows, scores), best first. A zero query finds nothing."""
        live = np.flatnonzero(np.any(queries != 0, axis=1))
        found: list[tuple[Rows, NDArray[np.float32]]] = [(np.empty(0, np.int32), np.empty(0, np.float32))] * len(
            queries
        )
        if self.index is None:
            self._search_exact(queries, k, allowed, live, found)
        else:
            for question in live:
                found[question] = self._search_one(queries[question], k, allowed, int(question))
        return found

    def _search_exact(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: Allowed,
        live: NDArray[np.intp],
        found: list[tuple[Rows, NDArray[np.float32]]],
    ) -> None:
        scores = self.scores(queries)
        allowed.block(scores, -np.inf)
        for question in live:
            rows = best(scores[question], k, -np.inf)
            found[question] = rows, scores[question][rows]

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
