"""What an event weighs: a number by its type, or a function of its value. The one definition of state and training.

Whole columns: `app.weighing`.
"""

import math
import struct
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from app.section import Section

FLOAT_MAX = 3.4028234663852886e38  # of float32: what a history can keep of a value
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EventWeight(Section):
    """What an event of one type weighs.

    `weight` times log1p(value) or the value itself, of values up to `cap`; 0 below `min`. With `min_s` or `cap_s` the
    value is a dwell time in seconds, and one that is missing lasts until the next event of the session.
    """

    weight: Bound = Field(1.0, description="Factor; alone (or a plain number in its place) the weight itself.")
    log1p: bool = Field(False, description="Times log(1 + value).")
    linear: bool = Field(False, description="Times the value.")
    min_s: Bound | None = Field(None, description="Events with a dwell time below this (seconds) count 0.")
    cap_s: Bound | None = Field(None, description="Longer dwell times (seconds) count as this.")
    min: Bound | None = Field(None, description="The same of a value that is no dwell time: below this counts 0.")
    cap: Bound | None = Field(None, description="Higher values count as this.")
    missing: Bound | None = Field(
        None, description="Weight of an event whose value is not known (yet); null: that of `weight` alone."
    )

    @model_validator(mode="before")
    @classmethod
    def _number_alone(cls, value: object) -> object:
        return value if isinstance(value, EventWeight | Mapping) else {"weight": value}

    @model_validator(mode="after")
    def _meaningful(self) -> "EventWeight":
        scaled = self.log1p or self.linear
        if self.log1p and self.linear:
            raise _wanted("log1p or linear, not both")
        if self.of_dwell and (self.min is not None or self.cap is not None):
            raise _wanted("min_s and cap_s (of a dwell time) or min and cap (of any other value), not both")
        if self.highest is not None and not scaled:
            raise _wanted("log1p: true or linear: true with cap or cap_s: else the value changes no weight")
        if self.highest is not None and self.highest < (self.lowest or 0.0):
            raise _wanted(f"a cap not below the minimum {self.lowest:g}")
        if self.missing is not None and self.is_plain:
            raise _wanted("log1p, linear, min or min_s with missing: a weight of the type alone needs no value")
        return self

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> float | dict[str, Any]:
        """A number alone as it was given, else what differs from the defaults."""
        given = {name: value for name, value in whole(self).items() if value != type(self).model_fields[name].default}
        return self.weight if not set(given) - {"weight"} else given

    @property
    def is_plain(self) -> bool:
        """Whether it is the same for all events of the type."""
        return not (self.log1p or self.linear) and self.lowest is None

    @property
    def of_dwell(self) -> bool:
        """Whether the value is a dwell time."""
        return self.min_s is not None or self.cap_s is not None

    @property
    def lowest(self) -> float | None:
        return self.min_s if self.min_s is not None else self.min

    @property
    def highest(self) -> float | None:
        return self.cap_s if self.cap_s is not None else self.cap

    @property
    def unknown(self) -> float:
        """The weight of an event without a value."""
        return self.weight if self.missing is None else self.missing

    def of(self, value: float) -> float:
        """The weight of one event, >= 0.

        Args:
            value: of the event; NaN: it has none (of a dwell time: none that can be told from the next event).
        """
        if self.is_plain:
            return self.weight
        if math.isnan(value):
            return self.unknown
        kept: float = struct.unpack("f", struct.pack("f", min(max(value, -FLOAT_MAX), FLOAT_MAX)))[0]
        if self.lowest is not None and kept < self.lowest:
            return 0.0
        amount = max(kept if self.highest is None else min(kept, self.highest), 0.0)
        return min(self.weight * (math.log1p(amount) if self.log1p else amount if self.linear else 1.0), FLOAT_MAX)


def _wanted(text: str) -> PydanticCustomError:
    return PydanticCustomError("event_weight", "{text}", {"text": text})


EventWeights = Mapping[str, EventWeight]  # by event type; types not named count 0


def by_type(**weights: float) -> dict[str, EventWeight]:
    """Plain numbers as weights."""
    return {kind: EventWeight(weight=weight) for kind, weight in weights.items()}
