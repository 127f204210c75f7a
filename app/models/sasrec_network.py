"""The transformer inside `sasrec`: causal attention with a learned bias by distance, no absolute positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Pre-norm attention and a feed-forward layer, both residual."""

    def __init__(self, dims: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_in, self.norm_mid = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.query, self.memory = nn.Linear(dims, dims), nn.Linear(dims, 2 * dims)
        self.out = nn.Linear(dims, dims)
        self.inner, self.outer = nn.Linear(dims, 2 * dims), nn.Linear(2 * dims, dims)
        self.distance = nn.Parameter(-torch.arange(length).repeat(heads, 1) / length * 2.0)  # (heads, length)

    def forward(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """tokens float32 (B, L, d); at int64 (B,) answers these places only, None all -> float32 (B, L or 1, d)."""
        n, length, dims = tokens.shape
        normed = self.norm_in(tokens)
        places = torch.arange(length, device=tokens.device)
        asked = places[None, :] if at is None else at[:, None]  # (1 or B, Q)
        if at is not None:
            rows = torch.arange(n, device=tokens.device)
            tokens, queries = tokens[rows, at][:, None], normed[rows, at][:, None]
        else:
            queries = normed
        query = self._split(self.query(queries))
        key, value = self.memory(normed).chunk(2, dim=-1)
        back = asked[:, :, None] - places  # (1 or B, Q, L)
        bias = self.distance[:, back.clamp(min=0)].transpose(0, 1).masked_fill((back < 0)[:, None], float("-inf"))
        mixed = functional.scaled_dot_product_attention(
            query, self._split(key), self._split(value), attn_mask=bias, dropout_p=self._drop
        )
        tokens = tokens + self._dropped(self.out(mixed.transpose(1, 2).reshape(n, -1, dims)))
        hidden = self._dropped(functional.gelu(self.inner(self.norm_mid(tokens))))
        return tokens + self._dropped(self.outer(hidden))

    def _split(self, tokens: Tensor) -> Tensor:
        n, length, dims = tokens.shape
        return tokens.view(n, length, self.heads, dims // self.heads).transpose(1, 2)

    @property
    def _drop(self) -> float:
        return self.dropout if self.training else 0.0

    def _dropped(self, tokens: Tensor) -> Tensor:
        return functional.dropout(tokens, self._drop, training=self.training)


class Encoder(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Item vectors of a history, oldest first -> what comes next.

    The answer is a decayed mean of the entries (a learned weight by distance) plus what the transformer adds to it;
    that begins at zero, so that learning begins at the mean, which is a good answer already.
    """

    def __init__(self, dims: int, blocks: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.blocks = nn.ModuleList([Block(dims, heads, length, dropout) for _ in range(blocks)])
        self.norm = nn.LayerNorm(dims)
        self.distance = nn.Parameter(-torch.arange(length) / 8.0)
        self.scale = nn.Parameter(torch.tensor(16.0))
        self.correct = nn.Linear(dims, dims)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    def forward(self, entries: Tensor) -> Tensor:
        """float32 (B, L, d) -> float32 (B, L, d): at each place what follows it. Padding belongs at the end."""
        entries = functional.dropout(entries, self.dropout, training=self.training)
        tokens = entries
        for block in self.blocks:
            tokens = block(tokens, None)
        return self._answer(entries, tokens, torch.arange(entries.shape[1], device=entries.device)[None])

    def last(self, entries: Tensor, at: Tensor) -> Tensor:
        """float32 (B, d): what follows place `at` int64 (B,) alone; the last block computes nothing else."""
        tokens = entries
        for place, block in enumerate(self.blocks):
            tokens = block(tokens, at if place == len(self.blocks) - 1 else None)
        return self._answer(entries, tokens, at[:, None])[:, 0]

    def _answer(self, entries: Tensor, tokens: Tensor, asked: Tensor) -> Tensor:
        """entries float32 (B, L, d), tokens float32 (B, Q, d), asked places int64 (1 or B, Q) -> float32 (B, Q, d)."""
        back = asked[:, :, None] - torch.arange(entries.shape[1], device=entries.device)
        weights = torch.softmax(self.distance[back.clamp(min=0)].masked_fill(back < 0, float("-inf")), dim=-1)
        answer: Tensor = self.scale * (weights @ entries + self.correct(self.norm(tokens)))
        return answer
