"""What every section of the settings is: typed, closed, unchangeable."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of the settings; unknown keys are refused, and a truth value is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        kinds = set(_kinds(cls.model_fields[info.field_name or ""].annotation))
        if kinds & {int, float} and bool not in kinds and any(isinstance(part, bool) for part in _parts(value)):
            raise ValueError("Input should be a number, not a truth value")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation names."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def _parts(value: object) -> Iterator[object]:
    """A value, or what stands in it."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    else:
        yield value
