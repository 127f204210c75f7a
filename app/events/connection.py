"""How Manta reaches the broker: one set of settings for confluent-kafka and for kafka-python."""

import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from app.errors import BrokerUnavailable, SettingsError
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
    "ssl.crl.location": "ssl_crlfile",
}
# Of TLS and SASL also these are understood; any other that both clients need would leave one of them outside.
_ALSO = frozenset({"ssl.ca.pem", "ssl.endpoint.identification.algorithm", "enable.ssl.certificate.verification"})
_LIBRDKAFKA_ALONE = frozenset({"ssl.cipher.suites", "ssl.curves.list", "ssl.sigalgs.list"})
_TURNED_AWAY = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})


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
    """Arguments of kafka-python's clients for the same broker.

    Raises:
        SettingsError: no broker is set, or `kafka.client` has a property of TLS or SASL that kafka-python has not.
    """
    given = settings.client
    for key in given:
        known = key in _ADMIN_NAMES or key in _ALSO or key in _LIBRDKAFKA_ALONE
        if key.startswith(("sasl.", "ssl.")) and not known:
            wanted = f"one of {', '.join(sorted([*_ADMIN_NAMES, *_ALSO, *_LIBRDKAFKA_ALONE]))}"
            secret = any(word in key for word in ("password", "secret", "token", "pem"))
            raise SettingsError("settings", f"kafka.client.{key}", "…" if secret else given[key], wanted)
    named: dict[str, Any] = {_ADMIN_NAMES[key]: value for key, value in given.items() if key in _ADMIN_NAMES}
    for name in ("security_protocol", "sasl_mechanism"):
        if name in named:
            named[name] = named[name].upper()
    if given.get("ssl.endpoint.identification.algorithm") == "none":
        named["ssl_check_hostname"] = False
    if given.get("enable.ssl.certificate.verification", "true").lower() == "false" or "ssl.ca.pem" in given:
        named["ssl_context"] = _ssl_context(given)
    return {
        "bootstrap_servers": bootstrap_servers(settings).split(","),
        "client_id": "manta-admin",
        "reconnect_backoff_max_ms": 500,
        **named,
    }


def _ssl_context(given: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=given.get("ssl.ca.location"), cadata=given.get("ssl.ca.pem"))
    context.check_hostname = given.get("ssl.endpoint.identification.algorithm") != "none"
    if given.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl.certificate.location" in given:
        password = given.get("ssl.key.password")
        context.load_cert_chain(given["ssl.certificate.location"], given.get("ssl.key.location"), password)
    return context


def guarded(settings: KafkaSettings) -> bool:
    """Whether the broker asks for TLS or SASL."""
    return settings.client.get("security.protocol", "PLAINTEXT").upper() != "PLAINTEXT"


def turned_away(error: KafkaError) -> bool:
    """Whether the broker refuses this client (password, certificate): trying again does not help."""
    return error.code() in _TURNED_AWAY


def check_connection(settings: KafkaSettings, timeout_s: float = 10.0) -> None:
    """Returns once the broker has let this client in.

    Raises:
        BrokerUnavailable: it turns the client away (at once), or does not answer within `timeout_s`; says why.
        SettingsError: a property of `kafka.client` that librdkafka does not have.
    """
    address = bootstrap_servers(settings)
    errors: list[KafkaError] = []
    silent = logging.getLogger("manta.kafka.check")
    silent.addHandler(logging.NullHandler())
    silent.propagate = False
    try:
        client = Producer(client_config(settings, error_cb=errors.append), logger=silent)
    except KafkaException as error:
        raise SettingsError("settings", "kafka.client", sorted(settings.client), error.args[0].str()) from None
    deadline = time.monotonic() + timeout_s
    while True:
        client.poll(0)
        if refusals := [error for error in errors if turned_away(error)]:
            raise BrokerUnavailable(f"Kafka at {address} turns this client away: {refusals[0].str()}")
        try:
            client.list_topics(timeout=0.3)
        except KafkaException as error:
            if time.monotonic() > deadline:
                reason = errors[0] if errors else error.args[0]
                raise BrokerUnavailable(f"Kafka at {address} does not answer: {reason.str()}") from None
        else:
            return
