"""How Manta reaches the broker: one set of settings for confluent-kafka and for kafka-python."""

import logging
import time
from typing import Any

from app.errors import SettingsError
from app.settings import KafkaSettings

_REPEAT_S = 60.0
# librdkafka property -> kafka-python argument
_ADMIN_NAMES = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}


class QuietLogger:
    """Takes librdkafka's lines: without a logger they land on stderr whatever the log level, by hundreds in an outage.

    One line of a kind (its first word) a minute is a warning; the others are for debugging.
    """

    def __init__(self) -> None:
        self._log = logging.getLogger("manta.kafka")
        self._said: dict[str, float] = {}

    def log(self, level: int, text: str, *parts: object) -> None:
        """As `logging.Logger.log`, which is what confluent-kafka calls."""
        kind = str(parts[0]) if parts else text
        now = time.monotonic()
        if level >= logging.WARNING and now - self._said.get(kind, -_REPEAT_S) >= _REPEAT_S:
            self._said[kind] = now
            self._log.warning(text, *parts)
        else:
            self._log.debug(text, *parts)


def bootstrap_servers(settings: KafkaSettings) -> str:
    """The broker's address.

    Raises:
        SettingsError: none is set (the embedded broker's address is filled in by whoever starts it).
    """
    if not settings.bootstrap_servers:
        raise SettingsError("settings", "kafka.bootstrap_servers", "", "HOST:PORT of a running broker")
    return settings.bootstrap_servers


def client_config(settings: KafkaSettings, **more: Any) -> dict[str, Any]:
    """librdkafka properties for any confluent client (`settings.kafka.client` included); `more` has dots as `__`."""
    return {
        "bootstrap.servers": bootstrap_servers(settings),
        "client.id": "manta",
        "log.connection.close": False,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.connection.setup.timeout.ms": 5000,
        **settings.client,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def consumer_config(settings: KafkaSettings, **more: Any) -> dict[str, Any]:
    """Properties of a consumer that assigns and seeks by itself, commits nothing and sees only committed records."""
    defaults: dict[str, Any] = {
        "group__id": "manta",
        "enable__auto__commit": False,
        "enable__auto__offset__store": False,
        "auto__offset__reset": "error",
        "isolation__level": "read_committed",
        "enable__partition__eof": False,
        "fetch__wait__max__ms": 20,
        "queued__max__messages__kbytes": 32_768,
    }
    return client_config(settings, **(defaults | more))


def admin_config(settings: KafkaSettings) -> dict[str, Any]:
    """Arguments of kafka-python's clients for the same broker."""
    named = {_ADMIN_NAMES[key]: value for key, value in settings.client.items() if key in _ADMIN_NAMES}
    if settings.client.get("ssl.endpoint.identification.algorithm") == "none":
        named["ssl_check_hostname"] = False  # type: ignore[assignment]
    return {
        "bootstrap_servers": bootstrap_servers(settings).split(","),
        "client_id": "manta-admin",
        "reconnect_backoff_max_ms": 500,
        **named,
    }
