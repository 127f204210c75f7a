"""What the torch families share: items as vectors (an id's own plus what its columns say), and the loss over them."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.models.content import ContentModel, ContentParams
from app.models.ials import Ials, IalsParams
from app.models.interactions import Catalogue, Interactions


class ItemTable(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Row i is id_i + W content_i, as a unit vector where `unit`, and the item's bias.

    Content lets items with few events borrow from those of the same genre, title words or year.
    """

    content: Tensor

    def __init__(
        self, ids: NDArray[np.float32], content: NDArray[np.float32], bias: NDArray[np.float32], *, unit: bool = False
    ) -> None:
        super().__init__()
        self.unit = unit
        self.n_items, n_factors = ids.shape
        self.ids = nn.Embedding(self.n_items, n_factors, _weight=torch.from_numpy(ids))
        self.bias = nn.Parameter(torch.from_numpy(bias.copy()))
        self.register_buffer("content", torch.from_numpy(content), persistent=False)
        self.project = nn.Linear(content.shape[1], n_factors, bias=False)

    def begin_at(self, vectors: NDArray[np.float32], bias: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Begins at what another table ended with; new items as drawn, moved to where their columns would put them.

        Args:
            vectors: float32 (n_before, d), of the other table.
            bias: float32 (n_before,), its biases.
            rows: int64 (n_items,), each item's row there; -1: it is new, and keeps its bias.
        """
        known = rows >= 0
        ends, content = vectors[rows[known]], self.content.numpy().astype(np.float64)
        seen = content[known]
        gram = seen.T @ seen + np.eye(seen.shape[1])
        project = np.linalg.solve(gram, seen.T @ ends)
        ids = self.ids.weight.detach().numpy().astype(np.float64)
        ids[known] = ends - seen @ project
        with torch.no_grad():
            self.project.weight.copy_(torch.from_numpy(project.T))
            self.ids.weight.copy_(torch.from_numpy(ids))
            self.bias[torch.from_numpy(known)] = torch.from_numpy(bias[rows[known]])

    def vectors(self) -> Tensor:
        """float32 (n_items, d)."""
        return self._sized(self.ids.weight + self.project(self.content))

    def _sized(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.unit else vectors

    def reader(self, n_rows: int) -> Callable[[Tensor], Tensor]:
        """A function from item rows (< n_items) to float32 (..., d), for one step that asks for about `n_rows`.

        Where that is no less than half the catalogue, all vectors are made once and looked up.
        """
        if 2 * n_rows >= self.n_items:
            whole = self.vectors()
            return lambda items: functional.embedding(items, whole)
        return lambda items: self._sized(self.ids(items) + self.project(self.content[items]))


def table_of(
    data: Interactions,
    catalogue: Catalogue,
    n_factors: int,
    *,
    warm_start: bool,
    content: bool,
    seed: int,
    unit: bool = False,
) -> ItemTable:
    """A table to learn: ids from a short iALS fit or at random, biases from popularity, content where there is any."""
    rng = np.random.default_rng(seed)
    ids = rng.normal(0.0, 0.02, (data.n_items, n_factors)).astype(np.float32)
    if warm_start and len(data):
        params = IalsParams(n_factors=n_factors, iterations=5)
        factors = Ials(params).fit(data, catalogue, seed=seed).item_vectors()
        size = float(np.linalg.norm(factors, axis=1)[np.unique(data.items)].mean())
        ids += factors * np.float32(0.5 / max(size, 1e-9))
    return ItemTable(ids, content_of(data, catalogue, content, seed), log_popularity(data), unit=unit)


def content_of(data: Interactions, catalogue: Catalogue, used: bool, seed: int) -> NDArray[np.float32]:
    """float32 (n_items, c): unit vectors of the items' columns; one column of zeros when not used or none there are."""
    if not used:
        return np.zeros((data.n_items, 1), np.float32)
    return ContentModel(ContentParams(n_factors=32)).fit(data, catalogue, seed=seed).item_vectors()


def log_popularity(data: Interactions, half_life_share: float = 0.25) -> NDArray[np.float32]:
    """float32 (n_items,): log of smoothed decayed counts, mean 0: where biases start.

    Args:
        data: events.
        half_life_share: a count halves over this share of the events.
    """
    age = np.arange(len(data))[::-1] / max(half_life_share * len(data), 1.0)
    counts = np.bincount(data.items, np.exp2(-age), minlength=data.n_items)
    logs = np.log(counts + 0.1)
    return np.asarray(logs - logs.mean(), np.float32)


def next_item_loss(
    table: ItemTable, read: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, n_negatives: int
) -> Tensor:
    """Cross-entropy of the target against all items, or against the target and `n_negatives` shared uniform ones.

    Args:
        table: the items.
        read: the step's `table.reader`.
        hidden: float32 (T, d), what was predicted; logits are hidden · vector + bias.
        targets: int64 (T,), item rows.
        n_negatives: 0, or not below n_items: the full softmax.

    Sampled logits are corrected by the log of n_items / n_negatives, so that the sum estimates the full one; negatives
    that are the target count nothing.
    """
    if n_negatives == 0 or n_negatives >= table.n_items:
        logits = functional.linear(hidden, table.vectors(), table.bias)
        return functional.cross_entropy(logits, targets)
    negatives = torch.randint(table.n_items, (n_negatives,), device=hidden.device)
    positive = (hidden * read(targets)).sum(dim=1) + table.bias[targets]
    others = functional.linear(hidden, read(negatives), table.bias[negatives])
    others = others + float(np.log(table.n_items / n_negatives))
    others = others.masked_fill(negatives[None, :] == targets[:, None], float("-inf"))
    return (torch.logsumexp(torch.cat([positive[:, None], others], dim=1), dim=1) - positive).mean()


def training_device() -> torch.device:
    """The GPU that the process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
