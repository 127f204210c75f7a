"""The transformer inside `sasrec`: causal attention with a learned bias by distance, no absolute positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.models.dropout import Dropout

POINTER = 32  # dimensions in which the answer asks for entries of the history


class Block(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Pre-norm attention and a feed-forward layer, both residual."""

    def __init__(self, dims: int, heads: int, length: int, dropout: Dropout) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_in, self.norm_mid = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.query, self.memory = nn.Linear(dims, dims), nn.Linear(dims, 2 * dims)
        self.out = nn.Linear(dims, dims)
        self.inner, self.outer = nn.Linear(dims, 2 * dims), nn.Linear(2 * dims, dims)
        # Heads begin between "the last few" and "all alike".
        slopes = torch.linspace(1.5, 0.25, heads)[:, None]
        self.distance = nn.Parameter(-slopes * torch.log1p(torch.arange(length)))  # (heads, length)

    def forward(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """tokens float32 (B, L, d); at int64 (B,) answers these places only, None all -> float32 (B, L or 1, d)."""
        n, length, dims = tokens.shape
        normed = self.norm_in(tokens)
        queries = normed
        if at is not None:
            rows = torch.arange(n, device=tokens.device)
            tokens, queries = tokens[rows, at][:, None], normed[rows, at][:, None]
        query = self._split(self.query(queries)) / math.sqrt(dims // self.heads)
        key, value = self.memory(normed).chunk(2, dim=-1)
        weights = torch.softmax(query @ self._split(key).transpose(2, 3) + by_distance(self.distance, length, at), -1)
        mixed = self.dropout(weights) @ self._split(value)
        tokens = tokens + self.dropout(self.out(mixed.transpose(1, 2).reshape(n, -1, dims)))
        hidden = self.dropout(functional.gelu(self.inner(self.norm_mid(tokens))))
        return tokens + self.dropout(self.outer(hidden))

    def _split(self, tokens: Tensor) -> Tensor:
        n, length, dims = tokens.shape
        return tokens.view(n, length, self.heads, dims // self.heads).transpose(1, 2)


def by_distance(weights: Tensor, length: int, at: Tensor | None) -> Tensor:
    """What attention adds for how far back an entry stands; -inf for what comes later.

    Args:
        weights: float32 (heads, longest), by distance from 0.
        length: entries L.
        at: int64 (B,), the places that ask; None: all of them.

    Returns:
        float32 (heads, L, L), or (B, heads, 1, L) for the places of `at`.
    """
    if at is not None:
        back = at[:, None] - torch.arange(length, device=weights.device)
        return weights[:, back.clamp(min=0)].transpose(0, 1).masked_fill((back < 0)[:, None], float("-inf"))[:, :, None]
    later = weights.new_full((len(weights), length - 1), float("-inf"))
    # Row i of the answer is a window of this line: no gather, whose gradient would be a scatter.
    line = torch.cat([weights[:, :length].flip(1), later], dim=1)
    return line.unfold(1, length, 1).flip(1)


class Encoder(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Item vectors of a history, oldest first -> what comes next.

    The answer is a mean of the entries, weighted by distance and by what the transformer asks for, plus what the
    transformer adds to it; both parts of the transformer begin at zero, so that learning begins at the decayed mean,
    which is a good answer already.

    Args:
        dims: d, of items and hidden states.
        blocks: transformer blocks.
        heads: of attention; divides dims.
        length: the longest history.
        dropout: of inputs, attention and layers.
        unit: whether the answer has a fixed length (the items' vectors are unit vectors then).
    """

    def __init__(self, dims: int, blocks: int, heads: int, length: int, dropout: float, unit: bool) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.unit = unit
        self.blocks = nn.ModuleList([Block(dims, heads, length, self.dropout) for _ in range(blocks)])
        self.norm = nn.LayerNorm(dims)
        self.widen = nn.Parameter(torch.tensor(math.sqrt(dims)))  # entries are shorter than 1, tokens are not
        self.distance = nn.Parameter(-torch.arange(length)[None] / 8.0)
        self.scale = nn.Parameter(torch.tensor(16.0))
        self.ask, self.told = nn.Linear(dims, POINTER), nn.Linear(dims, POINTER)
        self.correct = nn.Linear(dims, dims)
        for layer in (self.ask, self.correct):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, entries: Tensor) -> Tensor:
        """float32 (B, L, d) -> float32 (B, L, d): at each place what follows it. Padding belongs at the end."""
        entries = self.dropout(entries)
        tokens = self.widen * entries
        for block in self.blocks:
            tokens = block(tokens, None)
        return self._answer(entries, tokens, None)

    def last(self, entries: Tensor, at: Tensor) -> Tensor:
        """float32 (B, d): what follows place `at` int64 (B,) alone; the last block computes nothing else."""
        tokens = self.widen * entries
        for place, block in enumerate(self.blocks):
            tokens = block(tokens, at if place == len(self.blocks) - 1 else None)
        return self._answer(entries, tokens, at)[:, 0]

    def _answer(self, entries: Tensor, tokens: Tensor, at: Tensor | None) -> Tensor:
        """entries float32 (B, L, d), tokens float32 (B, Q, d) of all places or of `at` -> float32 (B, Q, d)."""
        tokens = self.norm(tokens)
        asked = self.ask(tokens) @ self.told(self.widen * entries).transpose(1, 2)
        bias = by_distance(self.distance, entries.shape[1], at)
        weights = torch.softmax(asked + (bias if at is None else bias[:, 0]), dim=-1)
        answer = weights @ entries + self.correct(tokens)
        if self.unit:
            answer = functional.normalize(answer, dim=-1)
        scaled: Tensor = self.scale * answer
        return scaled
