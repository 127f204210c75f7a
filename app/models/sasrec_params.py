"""Parameters of `sasrec`, and what each is by itself on given data."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from app.errors import MantaError
from app.models.interactions import Interactions
from app.models.kinds import SHORT
from app.models.storage import FamilyParams

SMALL = 300_000  # events below which the sizes are those that suited the demo's 90,000
WHOLE = 8192  # items up to which the softmax goes over all in the end
LEARNED = 8_000_000  # events that a fit on larger data learns from at most, repeats counted


class SasRecParams(FamilyParams):
    """Parameters of `sasrec`; what is null is chosen from the data's shape when the model is fitted."""

    n_factors: int | None = Field(
        None, ge=4, le=512, description="Dimensions of items and hidden states. Null: 64 on small data, else 128."
    )
    blocks: int | None = Field(None, ge=1, le=8, description="Transformer blocks. Null: 1 on small data, else 2.")
    heads: int = Field(2, ge=1, le=8, description="Attention heads; divides n_factors.")
    history: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="Newest events that the model looks at. Null: 50 on small data, else as many as the users of 95 % "
        "of the events have, at most 192.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout of inputs, attention and layers in fitting. Null: .3 on small data, .2."
    )
    similarity: Literal["dot", "cosine"] | None = Field(
        None, description="How items are compared with what was predicted. Null: cosine for sessions, else dot."
    )
    n_negatives: int | None = Field(
        None,
        ge=0,
        description="Sampled negatives shared by a batch; 0: all items. Null: 1024, of more than 8192 items 2048.",
    )
    whole_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the passes, at the end, whose softmax goes over all items. Null: a third on larger data "
        "of at most 8192 items, else none.",
    )
    lr: float | None = Field(
        None, gt=0, le=1, description="Adam's step size at its peak. Null: .002 on small data, .0015."
    )
    l2: float = Field(0.05, ge=0, description="Weight decay.")
    batch_events: int | None = Field(
        None, ge=2, description="Events that a step learns from. Null: 800 on small data, 2000 of sessions, else 3000."
    )
    iterations: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Passes over the events. Null: 6 on small data, else what comes to 8 million events, 2 to 12.",
    )
    warm_start: bool = Field(True, description="Whether item vectors start from a short iALS fit.")
    content: bool = Field(True, description="Whether item vectors see the items' columns.")
    memory_limit_bytes: int = Field(8_000_000_000, gt=0, description="Fitting is refused when it would need more.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.n_factors is not None and self.n_factors % self.heads:
            raise ValueError(f"heads: found {self.heads}, wanted a divisor of n_factors = {self.n_factors}")
        return self


@dataclass(frozen=True, slots=True)
class Sizes:
    """The parameters that depend on the data, chosen."""

    n_factors: int
    blocks: int
    history: int
    dropout: float
    similarity: Literal["dot", "cosine"]
    n_negatives: int
    whole_share: float
    lr: float
    batch_events: int
    iterations: int


def sizes_for(params: SasRecParams, data: Interactions) -> Sizes:
    """What the parameters say, and for what they leave open a choice by the number, lengths and items of the events."""
    n = len(data)
    small = n < SMALL
    lengths = np.bincount(data.users, minlength=1)
    sessions = n < SHORT * max(int(np.count_nonzero(lengths)), 1)
    longest = int(np.quantile(np.repeat(lengths, lengths), 0.95)) if n else 0
    by_shape = Sizes(
        n_factors=64 if small else 128,
        blocks=1 if small else 2,
        history=50 if small else min(192, -(-max(longest, 16) // 8) * 8),
        dropout=0.3 if small else 0.2,
        similarity="cosine" if sessions and not small else "dot",
        n_negatives=1024 if small or data.n_items <= WHOLE else 2048,
        whole_share=1 / 3 if data.n_items <= WHOLE and not small else 0.0,
        lr=0.002 if small else 0.0015,
        batch_events=800 if small else 2000 if sessions else 3000,
        iterations=6 if small else min(12, max(2, round(LEARNED / n))),
    )
    given = {name: value for name, value in params.model_dump().items() if name in by_shape.__slots__}
    return replace(by_shape, **{name: value for name, value in given.items() if value is not None})


def refuse_beyond(params: SasRecParams, sizes: Sizes, data: Interactions) -> None:
    """Refuses a fit that would need more memory than the limit.

    Raises:
        MantaError: with the bytes needed; nothing was allocated.
    """
    width = sizes.n_factors
    table = 4 * data.n_items * (width + 1) * 8  # weights, gradients twice, both moments, start, answer, its copy
    start = 4 * width * (data.n_users + 2 * data.n_items) if params.warm_start else 0
    logits = 4 * sizes.batch_events * (16 * sizes.blocks * (width + sizes.history * params.heads) + 8 * width)
    needed = table + start + 64 * len(data) + logits
    if needed > params.memory_limit_bytes:
        raise MantaError(
            f"sasrec: {len(data)} events of {data.n_users} users and {data.n_items} items need {needed / 1e9:.1f} GB, "
            f"wanted at most memory_limit_bytes = {params.memory_limit_bytes / 1e9:.1f} GB"
        )
