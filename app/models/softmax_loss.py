"""Cross-entropy over many items, made and differentiated chunk by chunk: all logits at once are never held."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CELLS = 1 << 21  # logits held at once (8 MB), about what stays in a cache


def softmax_loss(
    hidden: Tensor,
    own: Tensor,
    own_bias: Tensor,
    others: Tensor,
    others_bias: Tensor,
    places: Tensor,
    *,
    half: bool = False,
) -> Tensor:
    """The mean over T predictions of log(exp(s) + sum exp(others)) - s, s the score of the item that came.

    Args:
        hidden: float32 (T, d), what was predicted.
        own: float32 (T, d), the vectors of the items that came.
        own_bias: float32 (T,), their biases.
        others: float32 (M, d), what they are compared with.
        others_bias: float32 (M,), biases, and the correction where the others are a sample.
        places: int64 (T,), where among the others the item that came stands (it counts once); -1: nowhere.
        half: whether products are made in bfloat16, at twice the speed where the processor has it; sums are float32.
    """
    loss: Tensor = _Loss.apply(hidden, own, own_bias, others, others_bias, places, half)
    return loss


def halves_well(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Loss(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """The gradients are made together with the loss, while a chunk's logits are there."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        hidden, own, own_bias, others, others_bias, places, half = args
        kind = torch.bfloat16 if half else others.dtype
        factors = others.to(kind)
        n, step = len(hidden), max(1, CELLS // max(len(others), 1))
        loss = hidden.new_zeros(())
        slopes = [torch.empty_like(hidden), torch.empty_like(own), torch.empty_like(own_bias)]
        to_others, to_others_bias = torch.zeros_like(others), torch.zeros_like(others_bias)
        for start in range(0, n, step):
            some = slice(start, start + step)
            mine, place = hidden[some], places[some]
            factor = mine.to(kind)
            logits = (factor @ factors.T).float().add_(others_bias)
            rows = (place >= 0).nonzero()[:, 0]
            logits[rows, place[rows]] = float("-inf")
            positive = (mine * own[some]).sum(dim=1) + own_bias[some]
            top = torch.maximum(logits.amax(dim=1), positive)
            shares = logits.sub_(top[:, None]).exp_()
            total = shares.sum(dim=1) + (positive - top).exp()
            loss += (total.log() + top - positive).sum()
            shares.div_((total * n)[:, None])
            slope = ((positive - top).exp() / total - 1) / n
            to_others_bias += shares.sum(dim=0)
            parts = shares.to(kind)
            slopes[0][some] = slope[:, None] * own[some] + parts @ factors
            slopes[1][some] = slope[:, None] * mine
            slopes[2][some] = slope
            to_others += parts.T @ factor
        ctx.save_for_backward(*slopes, to_others, to_others_bias)
        return loss / n

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return *(slope * one for one in ctx.saved_tensors), None, None


class Negatives:
    """Draws items that a whole batch is compared with: half as the events have them, half any.

    Args:
        counts: float (n_items,), how often each item is in the events.
        n: draws at a time.
        device: where the draws are made.
    """

    def __init__(self, counts: NDArray[np.float64], n: int, device: torch.device) -> None:
        share = 0.5 * counts / max(counts.sum(), 1.0) + 0.5 / len(counts)
        self._share = torch.from_numpy(share / share.sum()).to(device)
        self._ends = torch.cumsum(self._share, dim=0)
        self._places = torch.full((len(counts),), -1, device=device)
        self._n = n

    def draw(self) -> tuple[Tensor, Tensor]:
        """Distinct rows int64 (M,), and float32 (M,) the log of how often each was drawn over how often it should be.

        With that added to their logits, the sum of exp over the drawn estimates that over all items without bias
        (Bengio and Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic language
        model", 2008).
        """
        luck = torch.rand(self._n, dtype=torch.float64, device=self._ends.device)
        drawn = torch.searchsorted(self._ends, luck).clamp(max=len(self._ends) - 1)
        rows, times = torch.unique(drawn, return_counts=True)
        return rows, torch.log(times / (self._n * self._share[rows])).float()

    def places(self, rows: Tensor, targets: Tensor) -> Tensor:
        """int64 (T,): where each target stands among the rows; -1: not there."""
        self._places[rows] = torch.arange(len(rows), device=rows.device)
        found = self._places[targets]
        self._places[rows] = -1
        return found
