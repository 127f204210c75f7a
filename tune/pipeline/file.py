"""A pipeline file: when it runs, which steps, how often each is tried, and by when the outcome must be live."""

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from app.errors import SettingsError
from app.settings import Settings

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
LEAST_PERIOD_S = 60.0
# The steps in their order.
STEPS = ("update", "sweep", "promote", "publish")
NEEDS = {"promote": "sweep", "publish": "promote"}


def _seconds(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("a number with its unit: 30s, 15m, 2h or 1d")
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())
    if found is None or not float(found[1]):
        raise ValueError("a number above 0 with its unit: 30s, 15m, 2h or 1d")
    return float(found[1]) * UNITS[found[2]]


def _time_of_day(value: object) -> object:
    if not isinstance(value, str) or re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value) is None:
        raise ValueError('a time of day in UTC, in quotes: "03:00"')
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SchedulePlan(_Part):
    """When a pipeline runs: `every` so often, on the full hour or day in UTC, or once a day `at` a time."""

    every: Seconds | None = Field(None, description="`1h`, `1d`, ...: at the multiples of it since 1970, UTC.")
    at: Annotated[str, BeforeValidator(_time_of_day)] | None = Field(
        None, description='`"03:00"`: every day at this time, UTC; in quotes.'
    )

    @model_validator(mode="after")
    def _one(self) -> "SchedulePlan":
        if (self.every is None) == (self.at is None):
            raise ValueError("either every or at")
        if self.every is not None and self.every < LEAST_PERIOD_S:
            raise ValueError("every: 1m or more")
        return self


class StepPlan(_Part):
    """How a step is tried."""

    retries: int = Field(2, ge=0, le=100, description="Further attempts where one fails.")
    backoff: Seconds = Field(30.0, description="Pause before the second attempt; doubled before each that follows.")
    timeout: Seconds | None = Field(None, description="An attempt that takes longer is stopped, and has failed.")


class UpdatePlan(StepPlan):
    """Kafka to lake, as `manta ingest`."""

    accept_gap: bool = Field(False, description="As `manta ingest --accept-gap`.")


class SweepPlan(StepPlan):
    """A sweep that ends in a registered bundle, as `manta sweep`."""

    file: str = Field(min_length=1, description="The sweep file; relative to the folder of the pipeline's.")


class PromotePlan(StepPlan):
    """The sweep's bundle through the gate, as `manta bundles promote`."""

    surfaces: tuple[str, ...] = Field((), description="None named: all that the bundle was built for.")


class PublishPlan(StepPlan):
    """What went live, on the topic `bundles.published`."""


class Steps(_Part):
    """The steps; those that are not named are left out."""

    update: UpdatePlan | None = None
    sweep: SweepPlan | None = None
    promote: PromotePlan | None = None
    publish: PublishPlan | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Steps":
        if not self.named():
            raise ValueError("at least one of " + ", ".join(STEPS))
        for step, other in NEEDS.items():
            if step in self.named() and other not in self.named():
                raise ValueError(f"{other} beside {step}")
        return self

    def named(self) -> list[str]:
        """Those that run, in their order."""
        return [step for step in STEPS if getattr(self, step) is not None]

    def plan(self, step: str) -> StepPlan:
        """How a step that runs is tried."""
        found = getattr(self, step)
        assert isinstance(found, StepPlan)
        return found


class PipelineFile(_Part):
    """One pipeline."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="Part of the ids of runs, jobs and sweeps.")
    schedule: SchedulePlan | None = Field(None, description="Null: it runs once.")
    deadline: Seconds | None = Field(None, description="From the data's snapshot to live; null: none.")
    keep: int = Field(200, ge=1, description="Ended runs that stay in the history.")
    steps: Steps


def read_pipeline(path: Path) -> tuple[PipelineFile, dict[str, Any]]:
    """Reads and checks a pipeline file by itself; also the document as it stands in the file.

    Raises:
        SettingsError: what is wrong, with file, key, found and wanted.
    """
    document = _loaded(path)
    pipeline = parse_pipeline(document, str(path))
    assert isinstance(document, dict)
    return pipeline, document


def check_pipeline(path: Path, pipeline: PipelineFile, settings: Settings) -> None:
    """Checks what a file names: surfaces, and its sweep file. Imports what every family needs: best in a process apart.

    Raises:
        SettingsError: as `read_pipeline`.
    """
    steps = pipeline.steps
    for surface in steps.promote.surfaces if steps.promote is not None else ():
        if surface not in settings.surfaces:
            wanted = "one of " + ", ".join(settings.surfaces)
            raise SettingsError(str(path), "steps.promote.surfaces", surface, wanted)
    if steps.sweep is None:
        return
    sweep = path.parent / steps.sweep.file
    if not sweep.is_file():
        raise SettingsError(str(path), "steps.sweep.file", steps.sweep.file, f"a sweep file under {path.parent}")
    from tune.space import load_sweep

    load_sweep(sweep, settings)


def parse_pipeline(document: object, origin: str) -> PipelineFile:
    """Checks what a file holds. A step without anything after its colon is one with the defaults.

    Raises:
        SettingsError: as `read_pipeline`.
    """
    if not isinstance(document, dict):
        raise SettingsError(origin, "(top)", type(document).__name__, "a mapping: name, schedule, deadline, steps")
    steps = document.get("steps")
    if isinstance(steps, dict):
        filled = {name: {} if plan is None and name in STEPS else plan for name, plan in steps.items()}
        document = {**document, "steps": filled}
    try:
        return PipelineFile.model_validate(document)
    except ValidationError as error:
        raise _first_error(error, origin) from None


def _loaded(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SettingsError(str(path), "(file)", "no such file", "a pipeline file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(str(path), "(file)", str(error).replace("\n", " "), "readable YAML") from None


def _first_error(error: ValidationError, origin: str) -> SettingsError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "(top)"
    if first["type"] == "extra_forbidden":
        return SettingsError(origin, key, first.get("input"), "one of the keys " + ", ".join(_keys_at(path[:-1])))
    if first["type"] == "missing":
        return SettingsError(origin, key, "nothing", "this key")
    return SettingsError(origin, key, first.get("input"), first["msg"].removeprefix("Value error, "))


def _keys_at(path: list[str]) -> list[str]:
    plans: dict[str, type[BaseModel]] = {
        "": PipelineFile,
        "schedule": SchedulePlan,
        "steps": Steps,
        "steps.update": UpdatePlan,
        "steps.sweep": SweepPlan,
        "steps.promote": PromotePlan,
        "steps.publish": PublishPlan,
    }
    return [*plans[".".join(path)].model_fields]
