"""The messages that Manta writes for others to read, and the JSON Schema of every message (`docs/schemas/`)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.events.schema import MAX_ID_BYTES, SCHEMA_VERSION, Event, Impression, Time


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: int = Field(SCHEMA_VERSION, ge=1, description="Version of this message.")


class DeadLetter(_Message):
    """What ingest refused, on `events.dlq`; the message key is `topic/partition/offset` of the source."""

    topic: str = Field(description="Where the message stood.")
    partition: int = Field(ge=0, description="Where the message stood.")
    offset: int = Field(ge=0, description="Where the message stood.")
    reason: str = Field(description="The code, such as `json` or `future`.")
    detail: str = Field(description="What was found and what was wanted.")
    time: Time = Field(description="RFC 3339: the record's timestamp, its arrival.")
    key: str = Field(description="The message's key in base64.")
    raw: str = Field(description="The message's bytes in base64; of more than 600,000 the beginning.")
    raw_bytes: int = Field(ge=0, description="How many bytes the message had.")
    topic_id: str = Field("", description="The topic's id: one that was made anew has another. Empty: not known.")


class ReplayNote(_Message):
    """A dead letter was sent back, on `events.dlq`; the message key is `replayed:` and the source position."""

    topic: str = Field(description="Where the message stood.")
    partition: int = Field(ge=0, description="Where the message stood.")
    offset: int = Field(ge=0, description="Where the message stood.")
    replayed: Time = Field(description="RFC 3339: when it was acknowledged in its topic again.")
    topic_id: str = Field("", description="The topic's id: one that was made anew has another. Empty: not known.")


class LoadedReplicas(BaseModel):
    """How many replicas have a bundle."""

    loaded: int = Field(ge=0)
    total: int = Field(ge=0)


class PublishedLineage(BaseModel):
    """Where a published bundle comes from, as its manifest says."""

    created: Time | None = Field(None, description="RFC 3339: when it was built.")
    snapshot: str = Field("", description="The lake snapshot that it learned from.")
    sweep: str = Field("", description="The sweep that found it.")
    seed: int = Field(0, description="The sweep's seed.")
    code_version: str = Field("", description="The code that built it.")
    metrics: dict[str, float] = Field({}, description="Its figures on validation.")


class Published(_Message):
    """A promotion or rollback as it ended, on `bundles.published`; the message key is the bundle's id.

    A pipeline adds a message with the bundle's `address` once it is where other clusters find it.
    """

    promotion: str = Field(description="Its id.")
    kind: str = Field(description="`promote` or `rollback`.")
    bundle: str = Field(description="The bundle.")
    surfaces: list[str] = Field(description="Where it was to go live.")
    force: bool = Field(description="Without the metric gate.")
    state: str = Field(description="`live`, `refused`, `failed` or `rolled_back`.")
    reason: str | None = Field(None, description="Why it is not live.")
    figures: dict[str, Any] = Field(description="What the gate compared.")
    replicas: LoadedReplicas
    created: Time = Field(description="RFC 3339.")
    changed: Time = Field(description="RFC 3339.")
    address: str | None = Field(None, description="The bundle's folder: a path, or `s3://…`, `gs://…`.")
    manifest_sha256: str | None = Field(
        None, description="SHA-256 of its `manifest.json`, which has that of every other file."
    )
    lineage: PublishedLineage | None = Field(None, description="Where it comes from.")


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of each message by name, as `docs/schemas/` has them."""
    models: dict[str, type[BaseModel]] = {
        "event": Event,
        "impression": Impression,
        "dead_letter": DeadLetter,
        "replay_note": ReplayNote,
        "published": Published,
    }
    return {name: model.model_json_schema() for name, model in models.items()} | {
        "item": _columns_schema("Item", "item_id"),
        "user": _columns_schema("User", "user_id"),
    }


def _columns_schema(title: str, id_field: str) -> dict[str, Any]:
    lists = [{"type": "array", "items": {"type": kind}} for kind in ("string", "number")]
    plain = [{"type": kind} for kind in ("string", "number", "boolean", "null")]
    return {
        "title": title,
        "description": f"Columns by name; the message key is the {id_field}; a null or empty value withdraws.",
        "type": "object",
        "properties": {
            id_field: {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
            "schema_version": {"type": "integer", "minimum": 1, "default": SCHEMA_VERSION},
        },
        "additionalProperties": {"anyOf": [*plain, *lists]},
    }
