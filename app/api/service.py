"""What the routes ask of whatever serves them: the gateway replica, or a fake in tests. Imports no transport."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from app.api.problems import Problem
from app.api.schemas import PromoteBody, RecommendBody, SimilarBody
from app.settings import Settings

Json = Mapping[str, Any]
Step = Literal["hour", "day", "week"]


class Service(Protocol):
    """Every call raises errors of `app.errors` or a `Problem`; the routes make problem+json of them."""

    settings: Settings

    async def recommend(self, body: RecommendBody) -> Json:
        """The answer of one request (contract, `POST /v1/recommend`)."""
        ...

    async def recommend_many(self, bodies: Sequence[RecommendBody]) -> list[Json | Problem]:
        """An answer or a problem each, in order."""
        ...

    async def similar(self, body: SimilarBody) -> Json: ...

    async def post_events(self, events: Sequence[Any], wait: bool) -> Json:
        """`{"accepted", "applied", "rejected": [{"index", "code", "message"}]}` once the broker has acknowledged.

        `wait`: until the state holds them, 1 s at most.
        """
        ...

    async def put_item(self, item_id: str, columns: dict[str, Any]) -> tuple[bool, Json]:
        """(whether it is new, the item); returns when every gateway has it."""
        ...

    async def post_items(self, items: Sequence[Any]) -> Json:
        """`{"accepted", "rejected"}`."""
        ...

    async def get_item(self, item_id: str) -> Json: ...

    async def delete_item(self, item_id: str) -> None:
        """Returns when no gateway will answer with it."""
        ...

    async def put_user(self, user_id: str, columns: dict[str, Any]) -> Json: ...

    async def get_user(self, user_id: str) -> Json: ...

    async def history(self, user_id: str) -> Json: ...

    async def merge(self, user_id: str, session_id: str) -> Json: ...

    async def erase(self, user_id: str) -> Json:
        """The erasure that is under way; of somebody unknown too."""
        ...

    async def erasure(self, erasure_id: str) -> Json: ...

    async def surfaces(self) -> list[Json]: ...

    async def bundles(self) -> list[Json]: ...

    async def bundle(self, bundle_id: str) -> Json: ...

    async def promote(self, bundle_id: str, body: PromoteBody) -> Json: ...

    async def promotion(self, promotion_id: str) -> Json: ...

    async def rollback(self, surface: str) -> Json: ...

    async def ctr(self, surface: str | None, first: int | None, end: int | None, step: Step, by_source: bool) -> Json:
        """`{"buckets", "watermark", "kept_from"}` of windows that overlap [first, end), microseconds; None: all."""
        ...

    async def trending(self, surface: str | None, k: int) -> Json:
        """`{"items", "window", "watermark"}`; None: the first surface."""
        ...

    async def readiness(self) -> tuple[bool, Json]:
        """(ready, stage by stage)."""
        ...

    async def metrics(self) -> bytes:
        """Prometheus text over all replicas."""
        ...
