"""Bodies of requests and answers: strict types, no coercion, unknown keys refused; and the examples of the document."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

ID_BYTES = 128


def _short(text: str) -> str:
    if not text.isascii() and len(text.encode()) > ID_BYTES:
        raise ValueError(f"1 to {ID_BYTES} bytes of UTF-8")
    return text


def _all_short(texts: list[str]) -> list[str]:
    for text in texts:
        _short(text)
    return texts


def _plain(context: dict[str, Any]) -> dict[str, Any]:
    """What is logged and hashed must also be encoded: deep nesting can be read but not written."""
    try:
        orjson.dumps(context)
    except TypeError:
        raise ValueError("values nested at most 250 deep") from None
    return context


_Text = Annotated[str, StringConstraints(min_length=1, max_length=ID_BYTES)]
Id = Annotated[_Text, AfterValidator(_short)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Ids = Annotated[list[_Text], AfterValidator(_all_short)]
Scalar = str | int | FiniteFloat | bool
Ordered = int | FiniteFloat | str


class Strict(BaseModel):
    """A body: JSON's own types only, and no key that is not named here."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Condition(Strict):
    """What a column must be; more than one condition of a column must hold together."""

    any: list[Scalar] | None = Field(None, max_length=1000, description="The column has at least one of these.")
    all: list[Scalar] | None = Field(None, max_length=1000, description="The column has all of these.")
    none: list[Scalar] | None = Field(None, max_length=1000, description="The column has none of these.")
    eq: Scalar | None = None
    gte: Ordered | None = None
    gt: Ordered | None = None
    lte: Ordered | None = None
    lt: Ordered | None = None
    exists: bool | None = Field(None, description="Whether the item has a value in the column at all.")


Filters = dict[Name, Condition]


def plain_filters(filters: Filters | None) -> dict[str, dict[str, Any]]:
    """The conditions as plain values, only those that were given."""
    return {column: condition.model_dump(exclude_none=True) for column, condition in (filters or {}).items()}


class RecommendBody(Strict):
    """A request for recommendations."""

    surface: Name | None = Field(None, description="Absent: the first surface of the settings.")
    user_id: Id | None = Field(None, description="Whose stored history to use; unknown users get cold start.")
    session_id: Id | None = Field(None, description="The visitor's session, where there is no user.")
    k: int | None = Field(None, ge=1, le=500, description="Length of the answer; absent: 10, or the surface's own.")
    exclude: Ids | None = Field(None, max_length=1000, description="Never shown; unknown ids are ignored.")
    filters: Filters | None = Field(None, description="Conditions on item columns, AND-ed.")
    items: Ids | None = Field(None, max_length=100, description="Anchors: the product page, the basket.")
    candidates: Ids | None = Field(None, max_length=1000, description="Rank exactly these, retrieve nothing.")
    history: Ids | None = Field(None, max_length=1000, description="Oldest first; stands in for the stored history.")
    context: Annotated[dict[str, Any], AfterValidator(_plain)] | None = Field(
        None, description="Free keys: features where the bundle names them."
    )
    explain: bool | None = Field(None, description="Adds sources, ranker score and rules to each item.")
    timeout_ms: int | None = Field(None, ge=1, le=10_000, description="Deadline; absent: the surface's own.")


class SimilarBody(Strict):
    """A request for items like one item."""

    item_id: Id
    k: int | None = Field(None, ge=1, le=500)
    surface: Name | None = None
    explain: bool | None = None
    filters: Filters | None = None
    exclude: Ids | None = Field(None, max_length=1000)


class BatchBody(Strict):
    """Many requests at once; each is checked and answered by itself."""

    requests: list[Any] = Field(max_length=256, description="Bodies as of POST /v1/recommend.")


class PromoteBody(Strict):
    """How to promote a bundle."""

    surfaces: list[Name] | None = Field(None, min_length=1, description="Absent: every surface of the bundle.")
    force: bool = Field(False, description="Skips the metric gate, never hashes or the smoke request.")
    expected: Name | None = Field(None, description="What must be live now, else 409.")


class RollbackBody(Strict):
    """Nothing to say: the surface is in the path."""


class MergeBody(Strict):
    """A visitor has logged in."""

    session_id: Id


class Source(BaseModel):
    """A source that named an item."""

    family: str
    rank: int
    score: float


class RuleEffect(BaseModel):
    """A rule that touched an item."""

    rule: str
    effect: str


class Explanation(BaseModel):
    """Why an item is in the answer."""

    sources: list[Source]
    ranker_score: float | None
    rules: list[RuleEffect]


class ScoredItem(BaseModel):
    """An item of an answer."""

    item_id: str
    score: float
    explain: Explanation | None = Field(None, description="Only with `explain: true`.")


class DegradedReason(BaseModel):
    """Which stage was skipped, and why."""

    stage: str
    cause: Literal["timeout", "error", "circuit_open", "starting", "overload"]


class RecommendAnswer(BaseModel):
    """Recommendations, all from one bundle."""

    request_id: str
    surface: str
    variant: str
    bundle: str
    degraded: Literal["retrieval_order", "cache", "popular"] | None
    degraded_reason: DegradedReason | None
    items: list[ScoredItem]
    timings_ms: dict[str, float]
    cache_hit: bool | None = Field(None, description="Only with `explain: true`.")


class ProblemAnswer(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]]


class BatchAnswer(BaseModel):
    """Answers in the order of the requests."""

    responses: list[RecommendAnswer | dict[str, ProblemAnswer]]


class Rejection(BaseModel):
    """Why one of many was refused."""

    index: int
    code: str
    message: str


class EventsAnswer(BaseModel):
    """What the broker has acknowledged."""

    accepted: int
    applied: bool | None = Field(description="With `wait=applied`: whether the state holds them already.")
    rejected: list[Rejection]


class ItemsAnswer(BaseModel):
    """What was taken of many items."""

    accepted: int
    rejected: list[Rejection]


class ItemAnswer(BaseModel):
    """An item: its columns and two more."""

    model_config = ConfigDict(extra="allow")

    item_id: str
    available: bool


class UserAnswer(BaseModel):
    """A user's columns."""

    model_config = ConfigDict(extra="allow")

    user_id: str


class HistoryEntry(BaseModel):
    """One event of a history."""

    item_id: str
    event_type: str
    event_time: str


class HistoryAnswer(BaseModel):
    """A stored history, newest last."""

    user_id: str
    items: list[HistoryEntry]
    version: int
    next: int | None = Field(None, description="What `after` is for the next page; null: there is none.")


class MergeAnswer(BaseModel):
    """What was merged."""

    user_id: str
    session_id: str


class ErasureStarted(BaseModel):
    """The erasure to ask about."""

    erasure: str


class ErasurePlace(BaseModel):
    """A place: clear since then, or something may be there until then."""

    place: str
    cleared: str | None = Field(None, description="Since when.")
    retention_until: str | None = Field(None, description="Until when something may be there; `unknown` where it is.")
    detail: str | None = None


class ErasureAnswer(BaseModel):
    """How far an erasure is. It names nobody."""

    erasure: str
    state: Literal["running", "done", "failed"] = Field(description="What has failed is tried again by itself.")
    reason: str | None = Field(description="Which places failed, and why.")
    requested: str
    changed: str
    places: list[ErasurePlace]


class SurfacesAnswer(BaseModel):
    """The surfaces and what is live on them."""

    surfaces: list[dict[str, Any]]


class BundlesAnswer(BaseModel):
    """The registered bundles, newest first."""

    bundles: list[dict[str, Any]]


class Figures(BaseModel):
    """A window's figures of one surface, variant and bundle."""

    start: str
    end: str
    surface: str
    variant: str | None
    bundle: str | None
    source: str | None = Field(None, description="Only with `by=source`; null: no source is known.")
    impressions: int
    clicks: int = Field(description="Impressions that were clicked, counted in the impression's window.")
    conversions: int
    ctr: float
    final: bool = Field(description="Whether later events leave it as it is.")


class CtrAnswer(BaseModel):
    """Windows in which something was shown, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "buckets": [
                        {
                            "start": "2026-11-21T10:00:00Z",
                            "end": "2026-11-21T11:00:00Z",
                            "surface": "home",
                            "variant": "champion",
                            "bundle": "b-7",
                            "impressions": 1200,
                            "clicks": 54,
                            "conversions": 3,
                            "ctr": 0.045,
                            "final": False,
                        }
                    ],
                    "watermark": "2026-11-21T10:41:07.250000Z",
                    "kept_from": "2026-11-14T10:00:00Z",
                }
            ]
        }
    )

    buckets: list[Figures]
    watermark: str | None = Field(description="Event time that every partition has reached that is not silent.")
    kept_from: str | None = Field(
        None, description="Where the figures of this step begin; older ones are in the lake's table `figures`."
    )


class TrendingItem(BaseModel):
    """An item with its events in the window; 0: it fills up from longer windows, or from all time."""

    item_id: str
    score: float = Field(description="Events by the surface's weights.")
    count: int


class Window(BaseModel):
    """[start, end)."""

    start: str | None
    end: str | None


class TrendingAnswer(BaseModel):
    """Best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [{"item_id": "318", "score": 41.0, "count": 41}],
                    "window": {"start": "2026-11-20T11:00:00Z", "end": "2026-11-21T11:00:00Z"},
                    "watermark": "2026-11-21T10:41:07.250000Z",
                }
            ]
        }
    )

    items: list[TrendingItem]
    window: Window
    watermark: str | None = Field(description="The newest event time, from which windows count back.")


class PromotionStarted(BaseModel):
    """The promotion to ask about; `state` as it was when the answer was made."""

    promotion: str
    state: str


class PromotionAnswer(BaseModel):
    """How far a promotion is."""

    model_config = ConfigDict(extra="allow")

    promotion: str
    state: Literal["loading", "live", "refused", "failed", "rolled_back"]
    reason: str | None
    replicas: dict[str, int]
