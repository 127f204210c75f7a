"""Named errors. Each says what was being done, what was found and what was wanted."""

from typing import Any


class MantaError(Exception):
    """Base of every error that a user of Manta should read as one clear line."""

    exit_code = 1


class SettingsError(MantaError):
    """A setting, an option or a file that the user wrote is wrong (exit code 2)."""

    exit_code = 2

    def __init__(self, where: str, key: str, found: object, wanted: str) -> None:
        super().__init__(f"{where}: {key}: found {found!r}, wanted {wanted}")
        self.where, self.key, self.found, self.wanted = where, key, found, wanted

    def __reduce__(self) -> tuple[type["SettingsError"], tuple[str, str, object, str]]:
        return type(self), (self.where, self.key, self.found, self.wanted)


class GapError(MantaError):
    """Offsets that should be read next are no longer (or not yet) in the topic.

    Attributes:
        gap: what is missing (`app.events.ranges.Gap`).
        wanted: the offset that should be read next.
        first: the lowest that is there.
        end: the offset after the last that is there.
        others: further partitions of the topic with a gap.
        after, before: between which times the missing messages arrived, as far as that is known.
    """

    def __init__(
        self,
        gap: Any,
        wanted: int,
        first: int,
        end: int,
        others: int = 0,
        times: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.gap, self.wanted, self.first, self.end, self.others = gap, wanted, first, end, others
        self.topic, self.partition = gap.topic, gap.partition
        self.after, self.before = times
        super().__init__(self._text())

    def between(self, after: str | None, before: str | None) -> "GapError":
        """The same with the times (RFC 3339)."""
        return GapError(self.gap, self.wanted, self.first, self.end, self.others, (after, before))

    def _text(self) -> str:
        missing = "what followed is missing"
        if self.gap.end > self.gap.start:
            missing = f"{self.gap.start} to {self.gap.end - 1} are missing"
        times = [f"{word} {time}" for word, time in (("after", self.after), ("before", self.before)) if time]
        arrived = f", which arrived {' and '.join(times)}" if times else ""
        held = f"the log holds {self.first} to {self.end - 1}" if self.end > self.first else "the log is empty"
        more = f"; {self.others} more partitions have gaps" if self.others else ""
        return (
            f"topic {self.topic}, partition {self.partition}: offset {self.wanted} should be read next, but {held}: "
            f"{missing}{arrived} ({self.gap.reason}){more}; nothing was committed. "
            "--accept-gap records the gap and goes on"
        )


class BrokerUnavailable(MantaError):
    """Kafka does not answer, or cannot keep up."""


class StateUnavailable(MantaError):
    """The user state cannot be brought up to the writer's position."""


class BundleError(MantaError):
    """A bundle is missing, damaged or of an unknown format."""


class RegistryUnavailable(BundleError):
    """The database of bundles and aliases does not answer."""


class GateRefused(MantaError):
    """The promotion gate refused a bundle; `figures` says by which metrics."""

    def __init__(self, message: str, figures: dict[str, object]) -> None:
        super().__init__(message)
        self.figures = figures


class NotFound(MantaError):
    """An id that nothing is known about."""


class Conflict(MantaError):
    """The request contradicts what is there (`found` against `wanted`)."""


class RequestInvalid(MantaError):
    """One field of a request has a value that cannot be answered (HTTP 422)."""

    def __init__(self, field: str, found: object, wanted: str) -> None:
        super().__init__(f"{field}: found {found!r}, wanted {wanted}")
        self.field, self.found, self.wanted = field, found, wanted
