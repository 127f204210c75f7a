"""Dropout from a pool of masks: drawing every mask anew was an eighth of a training step on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

POOL = 1 << 22  # masks kept, one number each (16 MB); a use takes a stretch of them from a random place on


class Dropout(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """In training each number is 0 with probability `share`, else divided by 1 - share; otherwise nothing happens."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._pool: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return tokens
        n = tokens.numel()
        if tokens.device.type != "cpu" or 2 * n > POOL:
            return functional.dropout(tokens, self.share)
        if self._pool is None:
            self._pool = (torch.rand(POOL) >= self.share).float() / (1 - self.share)
        start = int(torch.randint(POOL - n, ()))
        return tokens * self._pool[start : start + n].view(tokens.shape)

    def train(self, mode: bool = True) -> "Dropout":
        if not mode:
            self._pool = None
        super().train(mode)
        return self
