"""How one item column becomes numbers: words, numbers or vectors; fitted on a catalogue, saved as arrays and JSON.

Every encoder has `column`, `kind` and `encode(values) -> float32 (n, d)`, whose rows have length 1, or are zeros for a
missing or unreadable value; `arrays()` and `facts()` are what `encoder_of_saved` makes it from again.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from app.models.vectors import number_of, unit_length, unit_vectors, vector_size

WORD = re.compile(r"\w+")
MAX_WORDS = 20_000  # most frequent words of a column that are kept
KNOTS = 12  # soft buckets of a number column

Kind = Literal["list", "text", "number", "vector"]


@dataclass(frozen=True)
class Words:
    """Multi-hot words with idf weights, reduced by SVD when there are more than `n_factors`.

    Attributes:
        column: its name.
        kind: `list` (each entry of a list is a word) or `text` (a string is cut into lower-case words).
        words: the vocabulary.
        idf: float32 (W,), log(1 + n / df).
        projection: float32 (W, d), the identity where no reduction was needed.
    """

    column: str
    kind: Literal["list", "text"]
    words: tuple[str, ...]
    idf: NDArray[np.float32]
    projection: NDArray[np.float32]

    @classmethod
    def fit(cls, column: str, kind: Literal["list", "text"], values: Sequence[Any], n_factors: int, seed: int) -> Self:
        documents = [set(words_of(value, kind)) for value in values]
        counts = Counter(word for document in documents for word in document)
        least = 2 if len(counts) > n_factors else 1  # a word of one item alone relates it to nothing
        frequent = [word for word, count in counts.items() if count >= least]
        words = tuple(sorted(frequent, key=lambda word: (-counts[word], word))[:MAX_WORDS])
        idf = np.log1p(len(values) / np.array([counts[word] for word in words], np.float64)).astype(np.float32)
        plain = cls(column, kind, words, idf, np.eye(0, dtype=np.float32))
        if len(words) <= n_factors:
            return cls(column, kind, words, idf, np.eye(len(words), dtype=np.float32))
        start = np.random.default_rng(seed).normal(size=min(len(values), len(words)))
        _, sizes, right = svds(plain.matrix(values).astype(np.float64), k=min(n_factors, len(values) - 1), v0=start)
        order = np.argsort(-sizes, kind="stable")
        signs = np.where(right[np.arange(len(right)), np.abs(right).argmax(axis=1)] < 0, -1.0, 1.0)
        return cls(column, kind, words, idf, (right * signs[:, None])[order].T.astype(np.float32))

    def matrix(self, values: Sequence[Any]) -> csr_matrix:
        """Sparse float32 (n, W), rows of unit length."""
        place = self.places
        documents = [sorted({place[word] for word in words_of(value, self.kind) if word in place}) for value in values]
        columns = np.array([word for document in documents for word in document], np.int64)
        lengths = np.array([len(document) for document in documents], np.int64)
        owner = np.repeat(np.arange(len(values)), lengths)
        size = np.sqrt(np.bincount(owner, self.idf[columns].astype(np.float64) ** 2, minlength=len(values)))
        data = (self.idf[columns] / size[owner]).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return csr_matrix((data, columns, offsets), shape=(len(values), len(self.words)))

    @cached_property
    def places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        return unit_length(np.asarray(self.matrix(values) @ self.projection, np.float32))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"idf": self.idf, "projection": self.projection}

    def facts(self) -> dict[str, Any]:
        return {"column": self.column, "kind": self.kind, "words": list(self.words)}


@dataclass(frozen=True)
class Numbers:
    """Soft buckets between quantiles: neighbouring values share buckets, far ones do not."""

    column: str
    knots: NDArray[np.float64]  # ascending, distinct, at least one
    kind: ClassVar[Kind] = "number"

    @classmethod
    def fit(cls, column: str, values: Sequence[Any]) -> Self:
        known = np.array([value for value in map(number_of, values) if value is not None], np.float64)
        return cls(column, np.unique(np.quantile(known, np.linspace(0, 1, KNOTS))) if len(known) else np.zeros(1))

    def encode(self, values: Sequence[Any]) -> NDArray[np.float32]:
        numbers = [number_of(value) for value in values]
        known = np.array([number is not None for number in numbers], bool)
        filled = np.array([0.0 if number is None else number for number in numbers], np.float64)
        place = np.interp(filled, self.knots, np.arange(len(self.knots)))
        near = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(len(self.knots))) / 2)
        return unit_length((near * known[:, None]).astype(np.float32))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"knots": self.knots}

    def facts(self) -> dict[str, Any]:
        return {"column": self.column, "kind": self.kind}


@dataclass(frozen=True)
class Vectors:
    """A vector (a picture's, a text's), scaled to unit length; one of another size counts as missing."""

    column: str
    size: int
    kind: ClassVar[Kind] = "vector"

    def encode(self, values: Sequence[Any] | pa.ChunkedArray) -> NDArray[np.float32]:
        return unit_vectors(values, self.size)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"column": self.column, "kind": self.kind, "size": self.size}


ColumnEncoder = Words | Numbers | Vectors


def encoder_of(column: str, values: pa.ChunkedArray, n_factors: int, seed: int) -> ColumnEncoder | None:
    """The encoder for a column's type, fitted; None for a column without values or of a type without meaning here."""
    kind = values.type
    if values.null_count == len(values):
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words = Words.fit(column, "text", values.to_pylist(), n_factors, seed)
        return words if words.words else None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return Numbers.fit(column, values.to_pylist())
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return None
    if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
        words = Words.fit(column, "list", values.to_pylist(), n_factors, seed)
        return words if words.words else None
    size = vector_size(values)
    return Vectors(column, size) if size else None


def encoder_of_saved(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ColumnEncoder:
    """The encoder that `facts` and `arrays` of a fitted one describe."""
    column = str(facts["column"])
    match facts["kind"]:
        case "number":
            return Numbers(column, arrays["knots"])
        case "vector":
            return Vectors(column, int(facts["size"]))
        case kind:
            return Words(column, kind, tuple(facts["words"]), arrays["idf"], arrays["projection"])


def words_of(value: Any, kind: Literal["list", "text"]) -> list[str]:
    """The lower-case words of a text; the entries of a list (a string is a list of one); else nothing."""
    if kind == "text":
        return WORD.findall(value.lower()) if isinstance(value, str) else []
    entries = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in entries if isinstance(entry, str)]
