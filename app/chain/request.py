"""What the chain is asked and what it answers, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.degrade import Cause

Rung = Literal["retrieval_order", "cache", "popular"]
Stage = Literal["state", "retrieve", "rank"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question, already checked for shape (lengths, ranges); `docs` of each field: contract.md.

    Attributes:
        user_id, session_id: whose stored history to use; the user's where both are given.
        k: answers wanted; None: the surface's.
        exclude: ids never shown.
        filters: `{"COLUMN": {"any"|"all"|"none": [...], "eq", "gte", "gt", "lte", "lt", "exists"}}`.
        items: anchors; candidates are retrieved for them instead of for the history.
        candidates: rank exactly these.
        history: ids, oldest first, instead of the stored history.
        context: free keys for the ranker's features.
        timeout_ms: None: the surface's.
        arrived: `time.monotonic()` seconds from which the deadline counts; 0: when the chain starts.
        request_id: handed through to the answer.
    """

    user_id: str | None = None
    session_id: str | None = None
    k: int | None = None
    exclude: Sequence[str] = ()
    filters: Mapping[str, Mapping[str, Any]] | None = None
    items: Sequence[str] | None = None
    candidates: Sequence[str] | None = None
    history: Sequence[str] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    explain: bool = False
    timeout_ms: int | None = None
    arrived: float = 0.0
    request_id: str = ""


def similar(
    item_id: str,
    *,
    k: int | None = None,
    filters: Mapping[str, Mapping[str, Any]] | None = None,
    exclude: Sequence[str] = (),
    explain: bool = False,
    arrived: float = 0.0,
    request_id: str = "",
) -> Request:
    """The request for items similar to one item: the item as the only anchor, nobody's history."""
    return Request(
        k=k,
        exclude=exclude,
        filters=filters,
        items=(item_id,),
        explain=explain,
        arrived=arrived,
        request_id=request_id,
    )


class Scored(NamedTuple):
    """One item of an answer; `explain` as the contract writes it: sources, ranker_score, rules.

    `sources`: the families that named it, for the impression.
    """

    item_id: str
    score: float
    explain: dict[str, Any] | None = None
    sources: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an answer is degraded."""

    stage: Stage
    cause: Cause


class Seen(NamedTuple):
    """What the ranker saw of an answer's items: `values` float32 (items, F), in their order; F `names`."""

    names: tuple[str, ...]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, all of one bundle.

    Attributes:
        degraded: None for the configured chain (a cache hit and cold start included), else the rung that answered.
        items: best first, at most k.
        timings_ms: state, retrieve, rank (of the batch it was in; absent where skipped) and total.
        cache_hit: whether the answer came from the answer cache.
        seen: of answers in the sample whose every item was ranked, for the impression.
    """

    request_id: str
    surface: str
    variant: str
    bundle: str
    degraded: Rung | None
    degraded_reason: Reason | None
    items: tuple[Scored, ...]
    timings_ms: dict[str, float]
    cache_hit: bool = False
    explained: bool = False
    seen: Seen | None = field(default=None, compare=False)

    def body(self) -> dict[str, Any]:
        """The answer as the contract writes it in JSON."""
        reason = self.degraded_reason
        body: dict[str, Any] = {
            "request_id": self.request_id,
            "surface": self.surface,
            "variant": self.variant,
            "bundle": self.bundle,
            "degraded": self.degraded,
            "degraded_reason": None if reason is None else {"stage": reason.stage, "cause": reason.cause},
            "items": [{"item_id": item.item_id, "score": item.score} for item in self.items],
            "timings_ms": self.timings_ms,
        }
        if self.explained:
            body["items"] = [
                {"item_id": item.item_id, "score": item.score, "explain": item.explain} for item in self.items
            ]
            body["cache_hit"] = self.cache_hit
        return body
