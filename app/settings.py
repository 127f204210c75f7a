"""Typed settings: environment over file over default; unknown keys are refused."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from app.errors import SettingsError
from app.event_weights import EventWeight, by_type
from app.section import Section
from app.surfaces import SurfaceSettings

PREFIX = "MANTA_"
# Variables of the same prefix that are not settings.
NOT_SETTINGS = frozenset({"MANTA_HOME", "MANTA_SETTINGS", "MANTA_CACHE", "MANTA_SESSION", "MANTA_TEST", "MANTA_FAULT"})


class HttpSettings(Section):
    """The endpoint."""

    host: str = Field("127.0.0.1", description="Address the endpoint listens on; without keys loopback only.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint.")
    open: bool = Field(
        False, description="Needed to listen beyond loopback: there are no keys, a private network must guard it."
    )
    max_body_bytes: int = Field(1_000_000, ge=1024, description="Larger request bodies get 413.")

    @model_validator(mode="after")
    def _guarded(self) -> "HttpSettings":
        if not self.open and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"host {self.host!r} is not loopback and there are no keys: also set http.open: true")
        return self


class KafkaSettings(Section):
    """The broker and how Manta speaks to it."""

    bootstrap_servers: str = Field("", description="`HOST:PORT[,...]`; empty: the embedded broker, for trying out.")
    partitions: int = Field(4, ge=1, le=1024, description="Partitions of topics that Manta creates.")
    replication_factor: int = Field(1, ge=1, description="Replicas of topics that Manta creates.")
    max_in_flight_events: int = Field(
        20_000,
        ge=2_000,
        description="Unacknowledged messages a gateway holds; beyond: 503. At least what one request may bring: 1,000 "
        "events, of which a merge is two messages.",
    )
    linger_ms: float = Field(1.0, ge=0, description="How long the producer gathers a batch.")
    delivery_timeout_s: float = Field(3.0, gt=0, description="After this an unacknowledged event is a 503.")
    alarm_h: float = Field(
        24.0, ge=0, description="A reader that a topic's retention reaches within so many hours is an alarm."
    )
    long_polls: bool = Field(
        True, description="`false`: the broker answers an empty fetch at once (the embedded one); readers then doze."
    )
    client: dict[str, str] = Field(
        default={}, description="More librdkafka properties (TLS, SASL), for example `security.protocol: SASL_SSL`."
    )

    @field_validator("client", mode="before")
    @classmethod
    def _plain_words(cls, value: object) -> object:
        """YAML reads `false` and `7` as what they look like; librdkafka takes text. Names and passwords need quotes."""
        if not isinstance(value, dict):
            return value
        return {key: held if key.startswith("sasl.") else _as_text(held) for key, held in value.items()}


def _as_text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


class EventSettings(Section):
    """What an event may be."""

    dedup_days: float = Field(7.0, gt=0, description="Same (user or session, event_id) within this counts once.")
    max_future_s: float = Field(600.0, ge=0, description="Event times further ahead of arrival are refused.")
    types_without_item: tuple[str, ...] = Field(("merge", "search"), description="Event types that need no item_id.")


class LakeSettings(Section):
    """The Iceberg lake."""

    catalog: dict[str, str] = Field(
        default={}, description="pyiceberg catalog properties; empty: sqlite under MANTA_HOME."
    )
    warehouse: str = Field("", description="Where tables live; empty: `$MANTA_HOME/lake`.")
    namespace: str = Field("manta", description="Iceberg namespace.")
    partition: Literal["day", "month"] = Field("day", description="Partition of the events by event time.")
    max_open_partitions: int = Field(200, ge=1, description="Partition files one commit writes at most.")
    target_file_bytes: int = Field(
        128_000_000, ge=1_000_000, description="`manta lake compact` merges files below three quarters of this."
    )
    keep_snapshots_h: float = Field(
        24.0, ge=0, description="Hours a snapshot can be read by its id once another has followed."
    )
    max_snapshots: int = Field(1000, ge=1, description="Snapshots kept at most, however young: each commit names all.")
    grace_h: float = Field(
        24.0, ge=0.01, description="Hours a reader may take: only then files that nothing refers to are removed."
    )


class IngestSettings(Section):
    """Kafka to lake."""

    task_rows: int = Field(62_500, ge=1, description="Messages one read task holds at most.")
    chunk_rows: int = Field(125_000, ge=1, description="Messages one commit takes at most.")
    cpus_per_task: float = Field(0.5, gt=0, description="CPUs a read task reserves.")
    follow_s: float = Field(2.0, gt=0, description="Seconds between the commits of `manta ingest --follow`.")
    follow_rows: int = Field(
        100_000, ge=1, description="Messages such a commit takes at most; more waiting: the next one follows at once."
    )
    follow_upkeep: int = Field(
        500, ge=0, description="Rounds of `--follow` with news after which it compacts and expires; 0: never."
    )
    follow_rewrite_bytes_s: int = Field(
        250_000,
        ge=1,
        description="`items` and `users` are written anew as a whole: `--follow` commits their changes as often as "
        "this many bytes a second allow.",
    )


class StateSettings(Section):
    """User and item state in RocksDB."""

    placement: Literal["node", "sharded"] = Field(
        "node",
        description="`node`: every node holds the histories of all; `sharded`: each of `shards` lies on one node, "
        "items and user columns on all. Changed: run `manta state rebuild`.",
    )
    shards: int = Field(
        4,
        ge=1,
        le=1024,
        description="Shards of `sharded`, a divisor of the number of partitions of `events`; fixed at creation, as "
        "that number is. Changed: run `manta state rebuild`.",
    )
    max_history: int = Field(3000, ge=1, le=100_000, description="Newest events kept per user.")
    ttl_days: float | None = Field(
        None,
        gt=0,
        description="Events older than this, counted back from the newest event time of all, are in no history, when "
        "answering as in training; null: none expires. Longer than it was: run `manta state rebuild`.",
    )
    min_free_bytes: int = Field(
        200_000_000,
        ge=0,
        description="With less room on the disk of MANTA_HOME the writers of state and figures stop until there is "
        "more; reading goes on.",
    )
    catch_up_timeout_s: float = Field(1.0, gt=0, description="A replica that cannot catch up within this answers 503.")
    batch_events: int = Field(5000, ge=1, description="Events the writer applies in one write batch at most.")
    checkpoints: str = Field(
        "",
        description="Folder or address (`s3://…`, `gs://…`) of checkpoints: a node without state starts from the "
        "newest; empty: it replays the topics, and `manta state checkpoint` writes to `$MANTA_HOME/checkpoints`.",
    )
    checkpoints_kept: int = Field(3, ge=1, description="Newest checkpoints that stay when another is written.")


class StatsSettings(Section):
    """The live figures: impressions, clicks and conversions by hour and day, trending items."""

    enabled: bool = Field(True, description="`false`: nothing is counted, `/v1/stats` answers 503.")
    interval_s: float = Field(0.5, gt=0, description="How often the topics are looked at.")
    batch_events: int = Field(5000, ge=1, description="Messages applied in one write at most.")
    allowed_lateness_s: float = Field(
        3600.0, ge=0, description="Events later than this, by event time on their partition, are counted as late only."
    )
    idle_s: float = Field(
        10.0, gt=0, description="A partition silent for this long holds the watermark back no longer."
    )
    attribution_s: float = Field(
        86_400.0, gt=0, description="A click or conversion counts within this of its impression."
    )
    click_types: tuple[str, ...] = Field(("click",), min_length=1, description="Event types that are clicks.")
    conversion_types: tuple[str, ...] = Field(("purchase",), description="Event types that are conversions.")
    keep_hours: int = Field(168, ge=1, description="Hours of hourly figures that `/v1/stats` has.")
    keep_days: int = Field(92, ge=1, description="Days of daily figures that `/v1/stats` has.")
    in_lake: bool = Field(True, description="Hours and days go to the lake's table `figures` once they are final.")
    trending_hours: tuple[Annotated[int, Field(ge=1, le=8760)], ...] = Field(
        (24, 168), min_length=1, description="Windows of trending items; the shortest is filled from the longer ones."
    )


class AutoscaleSettings(Section):
    """Replicas of a deployment."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(16.0, gt=0, description="Requests in flight a replica is scaled for.")
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(120.0, ge=0)
    num_cpus: float = Field(0.2, ge=0, description="CPUs a replica reserves; its thread pools are capped to it.")
    num_gpus: float = Field(0.0, ge=0)
    max_queued_requests: int = Field(2000, ge=1, description="Serve's own limit; stays above ours.")


class ServeSettings(Section):
    """Ray Serve."""

    haproxy: bool = Field(True, description="`false`: Serve's Python proxy, slower, without HAProxy's two open ports.")
    gateway: AutoscaleSettings = AutoscaleSettings(min_replicas=2, max_replicas=4)
    retriever: AutoscaleSettings = AutoscaleSettings(num_cpus=0.1)
    ranker: AutoscaleSettings = AutoscaleSettings(num_cpus=0.1)
    max_batch: int = Field(32, ge=1, le=1024, description="Requests one micro-batch holds at most.")
    batch_wait_ms: float = Field(2.0, ge=0, description="Longest wait for the clients of the last batch to come back.")
    max_ongoing_requests: int = Field(256, ge=1, description="Requests a gateway works on; beyond: 429.")
    impressions_share: float = Field(
        1.0, ge=0, le=1, description="Share of the answers, drawn by request id, that are logged to `impressions`."
    )
    features_share: float = Field(
        0.05, ge=0, le=1, description="Share of the logged answers that carry what the ranker saw of their items."
    )
    impressions_buffer: int = Field(50_000, ge=1, description="Impressions waiting for the broker; beyond: dropped.")


class CacheSettings(Section):
    """The answer cache of each gateway replica."""

    answers: bool = Field(True, description="Keep answers by surface, bundle, user and history version.")
    max_bytes: int = Field(256_000_000, ge=1_000_000, description="Disk bound of one replica's cache.")


class RaySettings(Section):
    """The local Ray that `manta up` and `scripts/demo` start."""

    num_cpus: int | None = Field(None, ge=1, description="CPUs Ray may use; null: those of the machine.")
    object_store_bytes: int = Field(300_000_000, ge=80_000_000, description="Size of the object store.")
    session_dir: str = Field("", description="Parent of Ray's session folder (a short path); empty: the temp folder.")


class LearnSettings(Section):
    """Splits, the training view of events, and the promotion gate."""

    validation_fraction: float = Field(0.1, gt=0, lt=0.5, description="Newest part of the lake that validates.")
    ranker_fraction: float = Field(0.1, gt=0, lt=0.5, description="Part before that from which the ranker learns.")
    event_weights: dict[str, EventWeight] = Field(
        default=by_type(rating=1.0, purchase=1.0, click=1.0),
        description='Weight of each event type in training, as in a surface (docs/events.md, "Weights").',
    )
    metric: str = Field("ndcg_at_10", description="What sweep, blend, early stopping and gate compare.")
    validation_users: int = Field(2000, ge=10, description="Validation cases are sampled down to about this many.")
    seed: int = Field(0, ge=0)
    session_gap_s: float = Field(
        1800.0,
        gt=0,
        description="A user's events further apart are of different sessions, for the ranker's features and for dwell "
        "times that are missing.",
    )
    extra_features: tuple[Literal["idle_time", "session", "session_content", "session_idle"], ...] = Field(
        (), description="Features that the ranker has only where asked for: of the current session, and of its age."
    )
    user_features: tuple[str, ...] = Field(
        (), description="Columns of users, numbers, that are features of the ranker; learned from as they are now."
    )
    context_features: tuple[str, ...] = Field(
        (),
        description="Keys of a request's `context`, numbers, that are features of the ranker; of the log alone: "
        "0 in examples of next events.",
    )
    objectives: dict[str, tuple[str, ...]] = Field(
        default={"click": ("click",), "like": ("like",), "purchase": ("purchase",)},
        min_length=1,
        description="What the ranker predicts of an item that was shown, and the event types that say it happened; a "
        "surface weighs them (`surfaces.*.objectives`).",
    )
    statistics_age_h: float | None = Field(
        None,
        gt=0,
        description="How old item statistics get while they serve: the ranker's examples see them so old at most. "
        "Null: as a bundle's that is not followed for as long as the ranker slice lasts.",
    )
    gate_tolerance: float = Field(0.0, ge=0, description="How much worse than the champion a bundle may be.")
    segments: tuple[Annotated[str, Field(pattern=r"^(history|(items|users|events)\..+)$")], ...] = Field(
        ("history",),
        description="By what a bundle's metrics are told apart too: `history` (events before), `items.COLUMN`, "
        "`users.COLUMN`, `events.NAME` (`surface`, `context.KEY` ...; reads the lake once more each).",
    )


class PromotionSettings(Section):
    """What a bundle must show before it goes live, and after."""

    required: Literal["not_worse", "better"] = Field(
        "not_worse",
        description="Of the 95 % interval of the difference to the live bundle (same cases, users drawn together): "
        "`not_worse`: it reaches no less than zero; `better`: all of it lies above zero.",
    )
    most_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the live bundle's figure that the mean may be lower by, however wide the interval is.",
    )
    segment_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="The same on each segment (`learn.segments`) where the whole interval is below zero.",
    )
    segment_cases: int = Field(100, ge=1, description="Segments with fewer validation cases are not judged.")
    watch_h: float = Field(24.0, ge=0, description="Hours for which what went live is watched; 0: not at all.")
    least_answers: int = Field(
        50, ge=1, description="Answers of a bundle before errors are judged; latency: ten times as many."
    )
    most_failed: float = Field(0.2, ge=0, le=1, description="Taken back if more than this share of its answers fail.")
    most_slower: float = Field(
        3.0, ge=1, description="Taken back if the 95th percentile of its answers' time is this many times the former's."
    )
    slower_from_ms: float = Field(50.0, ge=0, description="A 95th percentile below this is never too slow.")
    least_impressions: int = Field(
        2000, ge=1, description="Items shown by each of both bundles before their CTR is compared."
    )
    most_ctr_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Taken back if its CTR is surely (99.9 %) lower than the former's by more than this share of it.",
    )
    ctr_settle_s: float = Field(
        600.0, ge=0, description="Hours of shown items count this long after their end: clicks come later."
    )
    ctr_every_s: float = Field(60.0, gt=0, description="How often CTR is looked at.")


class RegistrySettings(Section):
    """Bundles and what is live."""

    url: str = Field("", description="SQLAlchemy address of the registry; empty: sqlite under MANTA_HOME.")
    bundles: str = Field("", description="Folder of the bundles; empty: `$MANTA_HOME/bundles`.")
    keep: int = Field(10, ge=2, description="Bundles kept besides those that are live.")
    published: str = Field(
        "",
        description="Folder or address (`s3://…`, `gs://…`) to which a pipeline copies what it publishes, for other "
        "clusters to take; empty: they take it from where it is.",
    )


class ErasureSettings(Section):
    """Users who are erased."""

    delete_records: bool = Field(
        False,
        description="`true`: an erasure deletes from Kafka what everybody has read up to the request, of all users; "
        "else its report gives the date when retention will have.",
    )
    retry_s: float = Field(60.0, gt=0, description="A place that failed is tried again after this.")


class LogSettings(Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    requests: bool = Field(False, description="One JSON line per request.")


class Settings(Section):
    """Everything `manta.yaml` may say."""

    http: HttpSettings = HttpSettings()
    kafka: KafkaSettings = KafkaSettings()
    events: EventSettings = EventSettings()
    lake: LakeSettings = LakeSettings()
    ingest: IngestSettings = IngestSettings()
    state: StateSettings = StateSettings()
    stats: StatsSettings = StatsSettings()
    serve: ServeSettings = ServeSettings()
    cache: CacheSettings = CacheSettings()
    ray: RaySettings = RaySettings()
    learn: LearnSettings = LearnSettings()
    promotion: PromotionSettings = PromotionSettings()
    registry: RegistrySettings = RegistrySettings()
    erasure: ErasureSettings = ErasureSettings()
    log: LogSettings = LogSettings()
    surfaces: dict[str, SurfaceSettings] = Field(
        default={"home": SurfaceSettings()}, min_length=1, description="Surfaces by name; the first is the default."
    )

    @field_validator("surfaces")
    @classmethod
    def _names(cls, value: dict[str, SurfaceSettings]) -> dict[str, SurfaceSettings]:
        for name in value:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"surface name {name!r}: letters, digits, - and _ only")
        return value

    @property
    def default_surface(self) -> str:
        """The surface of a request that names none: the first."""
        return next(iter(self.surfaces))


def home_folder() -> Path:
    """`MANTA_HOME`, default `.manta/` in the checkout (the folder above `app/`), absolute."""
    named = os.environ.get("MANTA_HOME")
    return Path(named).absolute() if named else Path(__file__).resolve().parent.parent / ".manta"


def load_settings(file: Path | None = None, environ: dict[str, str] | None = None) -> Settings:
    """Settings from FILE (default: `$MANTA_SETTINGS`, else `manta.yaml` here or in the checkout, else none).

    Raises:
        SettingsError: unknown key, wrong type or missing file, with file, key, found and wanted.
    """
    env = dict(os.environ) if environ is None else environ
    path = file or _settings_file(env)
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_yaml(path)
    origin = str(path) if path else "defaults"
    from_env = _from_environment(env)
    merged = _merge(values, from_env)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = [str(part) for part in first["loc"]]
        where = "environment" if _holds(from_env, keys) else origin
        key = PREFIX + "__".join(keys).upper() if where == "environment" else ".".join(keys)
        wanted = "no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise SettingsError(where, key, first.get("input"), wanted) from None


def _settings_file(env: dict[str, str]) -> Path | None:
    if named := env.get("MANTA_SETTINGS"):
        return Path(named)
    for folder in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (folder / "manta.yaml").exists():
            return folder / "manta.yaml"
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SettingsError(str(path), "(file)", "no such file", "a settings file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(str(path), "(file)", str(error).replace("\n", " "), "readable YAML") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(str(path), "(top)", type(loaded).__name__, "a mapping of sections")
    return loaded


def _from_environment(env: dict[str, str]) -> dict[str, Any]:
    """`MANTA_HTTP__PORT=8001` as nested values; each value is read as YAML, so that lists and numbers work."""
    tree: dict[str, Any] = {}
    for name, text in sorted(env.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        keys = name.removeprefix(PREFIX).lower().split("__")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise SettingsError("environment", name, text, "a key that no other variable gives a plain value")
        node[keys[-1]] = text if value is None or keys[-1] == "bootstrap_servers" else value
    return tree


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _holds(tree: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
