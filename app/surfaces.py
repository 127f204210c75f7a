"""A surface's section of the settings: one place where recommendations show."""

from typing import Annotated, Literal

from pydantic import Field

from app.event_weights import EventWeight, by_type
from app.section import Section


class SourceSettings(Section):
    """How many candidates one source of the bundle contributes."""

    family: str = Field(description="Candidate family as the bundle names it (`item_knn`, `ease`, `content` ...).")
    k: int = Field(100, ge=1, le=2000, description="Candidates taken from this source.")


class RuleSettings(Section):
    """What an answer must obey on every rung of the ladder."""

    seen: Literal["never", "allowed"] = Field("never", description="`never`: items of the history are not shown again.")


class SurfaceSettings(Section):
    """One surface. Adding one is configuration, never code."""

    topology: Literal["colocated", "distributed"] = Field(
        "colocated", description="`colocated`: stages inside the gateway; `distributed`: own deployments."
    )
    anchor: Literal["required", "optional"] = Field("optional", description="Whether a request must name `items`.")
    timeout_ms: int = Field(100, ge=1, le=10_000, description="Deadline of a request that names none.")
    k: int = Field(10, ge=1, le=500, description="Answer length of a request that names none.")
    event_weights: dict[str, EventWeight] = Field(
        default=by_type(rating=1.0, purchase=1.0, click=1.0),
        description="Weight of each event type in the history; types not named count 0. A number, or a function of "
        "`value` (below).",
    )
    history_limit: int = Field(200, ge=1, le=10_000, description="Newest weighted events the models look at.")
    ttl_days: float | None = Field(
        None,
        gt=0,
        description="Shorter than `state.ttl_days`: older events are neither history nor seen here; training goes by "
        "that one.",
    )
    candidates: int = Field(200, ge=10, le=2000, description="Candidates that reach the ranker.")
    sources: tuple[SourceSettings, ...] = Field(
        default=(), description="Sources to merge; empty: the mix that the bundle chose on validation."
    )
    objectives: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="What a shown item is worth by what comes of it (`click: 1, purchase: 20`): candidates are ranked "
        "by the sum of weight × probability. Empty, or none that the ranker has learned: by `next`, else all alike.",
    )
    bundle_ms: float | None = Field(
        None,
        gt=0,
        description="Most CPU time that a lone request (the median of some) may take with a bundle that goes live "
        "here; null: `timeout_ms`.",
    )
    bundle_bytes: int | None = Field(None, ge=1, description="Largest bundle that may go live here; null: any.")
    ranked: bool = Field(True, description="`false`: retrieval order is the configured answer (no ranker).")
    rules: RuleSettings = Field(default=RuleSettings(), description="Rules that every rung obeys.")
    cache_ttl_s: float = Field(60.0, ge=0, description="Longest life of a cached answer; 0: no answer cache.")
    impressions: Literal["answered", "posted"] = Field(
        "answered",
        description="What counts as an impression: every item of an answer, or events of type `impression`.",
    )
    personal: bool = Field(True, description="`false`: the stored history is not used for candidates (trending).")
