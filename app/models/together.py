"""Processes that fit one torch model together: each takes its rows of every batch, and all take the same step.

They meet in torch's default process group (gloo between CPUs, nccl between GPUs), which whoever starts them makes
(`tune.together` by Ray Train). A process that is in no group is alone: nothing here changes what it does.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

Rows = TypeVar("Rows", bound=NDArray[Any])


def place() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def mine(batch: Rows) -> Rows:
    """The rows of a batch that this process learns from; all where it is alone, none where there are fewer rows."""
    rank, size = place()
    return batch[rank::size]  # type: ignore[return-value]


def begin(parameters: Sequence[nn.Parameter], seed: int) -> None:
    """The same weights everywhere, those of the first process, and other draws (dropout, negatives) in each."""
    rank, size = place()
    if size == 1:
        return
    with torch.no_grad():
        for parameter in parameters:
            distributed.broadcast(parameter, src=0)
    torch.manual_seed(seed + rank)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Adds up the gradients of all processes, in each; each has weighed its own by its share of the batch."""
    if place()[1] == 1:
        return
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(whole)
    for parameter, part in zip(parameters, whole.split([one.numel() for one in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def summed(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if place()[1] > 1:
        distributed.all_reduce(value)
    return value
