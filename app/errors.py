"""Named errors. Each says what was being done, what was found and what was wanted."""


class MantaError(Exception):
    """Base of every error that a user of Manta should read as one clear line."""

    exit_code = 1


class SettingsError(MantaError):
    """A setting, an option or a file that the user wrote is wrong (exit code 2)."""

    exit_code = 2

    def __init__(self, where: str, key: str, found: object, wanted: str) -> None:
        super().__init__(f"{where}: {key}: found {found!r}, wanted {wanted}")
        self.where, self.key, self.found, self.wanted = where, key, found, wanted


class GapError(MantaError):
    """Offsets that should be read next are no longer (or not yet) in the topic."""

    def __init__(self, topic: str, partition: int, wanted: int, first: int, end: int, reason: str) -> None:
        super().__init__(
            f"topic {topic}, partition {partition}: offset {wanted} should be read next, but the log holds "
            f"{first} to {end} ({reason}); nothing was committed. --accept-gap records the gap and goes on"
        )
        self.topic, self.partition, self.wanted, self.first, self.end = topic, partition, wanted, first, end


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
