"""AdamW in a page: torch's own imports its compiler at construction, 4 CPU-seconds that every trial would pay."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    Args:
        parameters: what learns; a parameter without a gradient in a step stays as it is.
        lr: step size at its peak.
        l2: weight decay: each step takes lr × l2 of a weight away.
        betas: decay of the first and second moment.
        schedule: lr's factor by step from 0; absent: 1.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        l2: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._lr, self._l2, self._betas, self._schedule = lr, l2, betas, schedule
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self._parameters]
        self._steps = 0

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        lr = self._lr * (self._schedule(self._steps) if self._schedule else 1.0)
        self._steps += 1
        first_decay, second_decay = self._betas
        learned = [place for place, parameter in enumerate(self._parameters) if parameter.grad is not None]
        if not learned:
            return
        parameters = [self._parameters[place] for place in learned]
        steps = [torch.tensor(float(self._steps), device=parameter.device) for parameter in parameters]
        with torch.no_grad():  # one pass over each parameter, where single operations made seven
            torch._fused_adamw_(
                parameters,
                [parameter.grad for parameter in parameters],
                [self._moments[place][0] for place in learned],
                [self._moments[place][1] for place in learned],
                [],
                steps,
                lr=lr,
                beta1=first_decay,
                beta2=second_decay,
                weight_decay=self._l2,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


def warm_then_cosine(steps: int, warm_share: float = 0.05) -> Callable[[int], float]:
    """The factor of the learning rate by step: a linear warm-up, then a cosine down to a hundredth at `steps`."""
    warm = max(1, round(steps * warm_share))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    return factor
