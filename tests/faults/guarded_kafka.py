"""A real Apache Kafka with TLS and SASL listeners beside the plain one, its certificate signed by itself."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from scripts import apache_kafka

USER, PASSWORD = "manta", "s3cret"


@dataclass(frozen=True, slots=True)
class GuardedKafka:
    """`HOST:PORT` of each listener, and the certificate that a client must trust."""

    plain: str
    sasl: str
    tls: str
    both: str
    certificate: Path


def start(folder: Path) -> GuardedKafka:
    """Starts the broker of `folder`; end it with `apache_kafka.end(folder / "kafka", ...)`."""
    key, certificate, keystore = (folder / name for name in ("key.pem", "certificate.pem", "keystore.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *files], check=True, capture_output=True)
    keystore.write_text(key.read_text() + certificate.read_text())
    names = ("SASL_PLAINTEXT", "SSL", "SASL_SSL", "CONTROLLER", "PLAINTEXT")
    at = {name: f"127.0.0.1:{apache_kafka.free_port()}" for name in names}
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    properties = {
        "listeners": ",".join(f"{name}://{at[name]}" for name in names),
        "advertised.listeners": ",".join(f"{name}://{at[name]}" for name in names if name != "CONTROLLER"),
        "controller.quorum.bootstrap.servers": at["CONTROLLER"],
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name}:{name}" for name in names if name != "CONTROLLER"),
        "sasl.enabled.mechanisms": "PLAIN",
        **{
            f"listener.name.{name}.plain.sasl.jaas.config": f'{login} user_{USER}="{PASSWORD}";'
            for name in ("sasl_plaintext", "sasl_ssl")
        },
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
    }
    port = int(at["PLAINTEXT"].rpartition(":")[2])
    apache_kafka.start(folder / "kafka", port, properties)
    return GuardedKafka(at["PLAINTEXT"], at["SASL_PLAINTEXT"], at["SSL"], at["SASL_SSL"], certificate)
