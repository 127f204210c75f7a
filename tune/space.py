"""A sweep file: families × search space × search × scheduler × resources × budget, checked before anything starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from app.errors import SettingsError
from app.evaluation.protocols import KS
from app.models.families import FAMILIES, Choice, Family, FloatRange, IntRange, Range
from app.ranking.kinds import LambdaParams, NetworkParams
from app.settings import Settings
from tune.mixes import DEFAULT_MIX, MixPlan
from tune.ranker_plan import RankerPlan

KINDS = ("choice", "uniform", "loguniform", "int", "logint")
EVENT_MARKS = ("event_type", "surface", "variant", "bundle", "context", "extra")
METRICS = tuple(f"{name}_at_{k}" for name in ("ndcg", "hit_rate", "mrr", "recall") for k in KS)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChoiceSpec(_Part):
    """One of the values."""

    choice: tuple[Any, ...] = Field(min_length=1)

    def range(self) -> Range:
        return Choice(self.choice)


class _Ends(_Part):
    @model_validator(mode="after")
    def _rising(self) -> "_Ends":
        low, high = next(iter(self.__dict__.values()))
        if not low < high:
            raise ValueError("[low, high] with low < high")
        return self


class UniformSpec(_Ends):
    """A float between both."""

    uniform: tuple[float, float]

    def range(self) -> Range:
        return FloatRange(*self.uniform)


class LogUniformSpec(_Ends):
    """A float between both, uniform in the logarithm; low above 0."""

    loguniform: tuple[Annotated[float, Field(gt=0)], float]

    def range(self) -> Range:
        return FloatRange(*self.loguniform, log=True)


class IntSpec(_Ends):
    """An integer between both, both included."""

    int: tuple[int, int]

    def range(self) -> Range:
        return IntRange(*self.int)


class LogIntSpec(_Ends):
    """An integer between both, both included, uniform in the logarithm; low above 0."""

    logint: tuple[Annotated[int, Field(gt=0)], int]

    def range(self) -> Range:
        return IntRange(*self.logint, log=True)


def _kind(value: Any) -> str:
    """Which of the specs a value in the file is; the spec's own message says what is wrong with it."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    if isinstance(value, Mapping) and len(value) == 1 and (named := next(iter(value))) in KINDS:
        return str(named)
    return "plain" if not isinstance(value, Mapping) else "unknown"


ParamSpec = Annotated[
    Annotated[ChoiceSpec, Tag("choice")]
    | Annotated[UniformSpec, Tag("uniform")]
    | Annotated[LogUniformSpec, Tag("loguniform")]
    | Annotated[IntSpec, Tag("int")]
    | Annotated[LogIntSpec, Tag("logint")]
    | Annotated[str | bool | int | float | list[Any] | None, Tag("plain")],
    Discriminator(
        _kind,
        custom_error_type="space",
        custom_error_message="a value, a list of values, or one of {" + ": …}, {".join(KINDS) + ": …}",
    ),
]


class FamilyPlan(_Part):
    """What a sweep tries of one family."""

    samples: int = Field(4, ge=1, le=100_000, description="Trials; with `search: grid` the grid's size at most.")
    defaults: bool = Field(True, description="Whether the first trial is the family's defaults.")
    cpus: float | None = Field(None, gt=0, description="CPUs a trial reserves; null: the sweep's `cpus`.")
    gpus: float = Field(0.0, ge=0, description="GPUs a trial reserves where the cluster has any.")
    workers: int = Field(
        1, ge=1, le=64, description="Processes that fit the best configuration for the bundle together, by Ray Train."
    )
    space: dict[str, ParamSpec] | None = Field(
        None, description="Parameters to search; those not named keep their defaults. Null: the family's own ranges."
    )

    def ranges(self, family: Family) -> dict[str, Range]:
        """The search space by parameter; a plain value is a choice of one, a list one of its values."""
        if self.space is None:
            return dict(family.space)
        return {name: _range(spec) for name, spec in self.space.items()}


class ObjectivePlan(_Part):
    """What serving a model costs, in the unit of the metric."""

    latency_ms: float = Field(0.0, ge=0, description="Of a millisecond that the candidates of one user take.")
    megabyte: float = Field(0.0, ge=0, description="Of a megabyte of the saved model.")


class SegmentPlan(_Part):
    """A small model of each segment, in the place of one model of all."""

    of: Literal["items", "users", "events"] = Field(description="Whose column tells the segments.")
    by: str = Field(min_length=1, description="The column: of events also `context.KEY` and `extra.KEY`.")
    values: tuple[str, ...] = Field((), description="The segments; none named: all that are large enough.")
    least_events: int = Field(500, ge=1, description="Segments with fewer events to fit on get no model.")
    cases: int = Field(200, ge=1, description="Validation cases of a segment at most.")


class SweepFile(_Part):
    """One file under `tune/sweeps/`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="Part of the sweep's id.")
    metric: Literal[METRICS] | None = Field(None, description="What is maximised; null: `learn.metric`.")  # type: ignore[valid-type]
    seed: int | None = Field(None, ge=0, description="Null: `learn.seed`.")
    search: Literal["optuna", "population", "random", "grid"] = Field(
        "optuna", description="Where the next trial is looked for."
    )
    population: int = Field(8, ge=2, description="Of `search: population`: the trials that parents are drawn from.")
    scheduler: Literal["asha", "none"] | None = Field(
        None, description="Whether weak trials of iterative families stop; null: `asha`, by segment `none`."
    )
    grace: int = Field(1, ge=1, description="Passes before `asha` may stop a trial.")
    reduction: float = Field(3.0, gt=1, description="`asha` lets one in this many go on from rung to rung.")
    max_concurrent: int | None = Field(None, ge=1, description="Trials at once; null: as many as fit.")
    cpus: float = Field(1.0, gt=0, description="CPUs a trial reserves; its thread pools are capped to them.")
    budget_s: float | None = Field(None, gt=0, description="After this no trial goes on; the best so far counts.")
    budget_cost: float | None = Field(None, gt=0, description="The same by cost, in the unit of the prices.")
    cpu_hour: float = Field(0.0, ge=0, description="Price of a CPU that a worker holds for an hour.")
    gpu_hour: float = Field(0.0, ge=0, description="Price of a GPU that a worker holds for an hour.")
    retries: int = Field(
        1, ge=0, le=10, description="Further attempts where a trial's process dies or the machine fails it."
    )
    objective: ObjectivePlan = Field(ObjectivePlan(), description="What is taken off the metric.")
    latency_probes: int = Field(
        20, ge=0, description="Single requests that measure a model's latency; 0: not measured."
    )
    begin: Literal["nothing", "live"] = Field(
        "nothing", description="Where the fits for the bundle begin: `live`, at the live bundle's weights."
    )
    history_limit: int = Field(200, ge=1, le=10_000, description="Newest events of a history that models see.")
    ranker: RankerPlan = Field(RankerPlan(), description="Which rankers are tried, with which parameters.")
    mix: MixPlan = Field(DEFAULT_MIX, description="How far the bundle's sources and their counts are searched for.")
    segment: SegmentPlan | None = Field(None, description="Many small models in the place of one.")
    families: dict[str, FamilyPlan] = Field(min_length=1)


def _range(spec: Any) -> Range:
    if isinstance(spec, ChoiceSpec | _Ends):
        return spec.range()  # type: ignore[union-attr]
    return Choice(tuple(spec) if isinstance(spec, list) else (spec,))


def load_sweep(file: Path, settings: Settings) -> SweepFile:
    """The sweep in FILE, with metric and seed filled from the settings.

    Raises:
        SettingsError: file, key, found and wanted of the first thing that is wrong.
    """
    try:
        loaded = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise SettingsError(str(file), "(file)", "no such file", "a sweep file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(str(file), "(file)", str(error).replace("\n", " "), "readable YAML") from None
    return parse_sweep(loaded, str(file), settings)


def parse_sweep(loaded: Any, origin: str, settings: Settings) -> SweepFile:
    """`load_sweep` of what the file held; `origin` names it in messages."""
    if not isinstance(loaded, dict):
        raise SettingsError(origin, "(top)", type(loaded).__name__, "a mapping with name and families")
    families = loaded.get("families")
    plans = families if isinstance(families, dict) else {}
    for name, plan in plans.items():
        if name not in FAMILIES:
            raise SettingsError(origin, "families", name, "one of " + ", ".join(FAMILIES))
        if plan is None:
            loaded = {**loaded, "families": {**loaded["families"], name: {}}}
    try:
        sweep = SweepFile.model_validate(loaded)
    except ValidationError as error:
        raise _first_error(error, origin) from None
    for name, plan in sweep.families.items():
        _check_space(plan, FAMILIES[name], sweep.search, f"families.{name}.space", origin)
    filled = {"metric": sweep.metric or settings.learn.metric, "seed": settings.learn.seed}
    if sweep.seed is not None:
        filled.pop("seed")
    if filled["metric"] not in METRICS:
        raise SettingsError("settings", "learn.metric", filled["metric"], "one of " + ", ".join(METRICS))
    _check_whole(sweep, origin)
    return sweep.model_copy(update={**filled, "scheduler": sweep.scheduler or ("none" if sweep.segment else "asha")})


def _check_whole(sweep: SweepFile, origin: str) -> None:
    """Keys that contradict each other."""
    for name, plan in sweep.families.items():
        if plan.workers > 1 and not FAMILIES[name].shared_fit:
            able = sorted(one.name for one in FAMILIES.values() if one.shared_fit)
            wanted = f"1, which only {', '.join(able)} may exceed"
            raise SettingsError(origin, f"families.{name}.workers", plan.workers, wanted)
    if sweep.segment is not None:
        if sweep.scheduler == "asha":
            raise SettingsError(origin, "scheduler", "asha", "none, since segment trains many small models a trial")
        if sweep.objective != ObjectivePlan():
            raise SettingsError(origin, "objective", sweep.objective.model_dump(), "nothing, since segment is there")
        column = sweep.segment.by.partition(".")[0]
        if sweep.segment.of == "events" and column not in EVENT_MARKS:
            raise SettingsError(origin, "segment.by", sweep.segment.by, "one of " + ", ".join(EVENT_MARKS))
    if sweep.budget_cost is not None and not sweep.cpu_hour and not sweep.gpu_hour:
        raise SettingsError(origin, "budget_cost", sweep.budget_cost, "cpu_hour or gpu_hour beside it: a price")
    if sweep.objective.latency_ms and not sweep.latency_probes:
        raise SettingsError(origin, "latency_probes", 0, "at least 1, since objective.latency_ms weighs the latency")


def _first_error(error: ValidationError, origin: str) -> SettingsError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    # Below a parameter pydantic repeats the kind of spec ("loguniform"), once as the tag, once as the field.
    key = ".".join(part for place, part in enumerate(path) if place == 0 or part != path[place - 1])
    if first["type"] == "extra_forbidden":
        return SettingsError(origin, key, first.get("input"), "one of the keys " + ", ".join(_keys_at(path)))
    if first["type"] == "missing":
        return SettingsError(origin, key, "nothing", "this key")
    return SettingsError(origin, key, first.get("input"), first["msg"].removeprefix("Value error, "))


def _keys_at(path: list[str]) -> list[str]:
    """The keys that the mapping has in which the last part of the path was found."""
    if path[0] in ("objective", "segment") and len(path) > 1:
        return [*(ObjectivePlan if path[0] == "objective" else SegmentPlan).model_fields]
    if path[0] == "mix" and len(path) > 1:
        return [*MixPlan.model_fields]
    if path[0] == "ranker" and len(path) > 1:
        inner: dict[str, type[BaseModel]] = {"network": NetworkParams, "lightgbm": LambdaParams}
        return [*(inner.get(path[1], RankerPlan) if len(path) > 2 else RankerPlan).model_fields]
    return [*(FamilyPlan if path[0] == "families" else SweepFile).model_fields]


def _check_space(plan: FamilyPlan, family: Family, search: str, where: str, origin: str) -> None:
    for name, found in plan.ranges(family).items():
        key = f"{where}.{name}"
        if name not in family.params.model_fields:
            raise SettingsError(origin, key, name, "one of " + ", ".join(family.params.model_fields))
        if search == "grid" and not isinstance(found, Choice):
            raise SettingsError(origin, key, "a range", "a list of values, since search is grid")
        ends = found.values if isinstance(found, Choice) else (found.low, found.high)
        for value in ends:
            try:
                family.params.model_validate({name: value})
            except ValidationError as error:
                raise SettingsError(origin, key, value, error.errors(include_url=False)[0]["msg"]) from None
