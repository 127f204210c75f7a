"""What every test may lean on: a clean environment, homes that end, and a real Apache Kafka."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from scripts import apache_kafka

# Replicas of libraries' thread pools would fight over the few cores that the tests have.
for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_pool, "1")
# What a developer has set must not reach the tests; the cache only says where downloads are kept.
for _name in [name for name in os.environ if name.startswith(("MANTA_", "RAY_")) and name != "MANTA_CACHE"]:
    del os.environ[_name]
# Read once, when Ray is first imported, which may be in a test that does not start it (see deployments/environment.py).
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests marked `cluster` may start or join a Ray."""
    if request.node.get_closest_marker("cluster"):
        return

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("this test is not marked `cluster`: it may not start Ray")

    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture(scope="session")
def kafka_jars() -> None:
    """Skips where Apache Kafka cannot be had; says why."""
    if missing := apache_kafka.missing_tools():
        pytest.skip(f"Apache Kafka needs {' and '.join(missing)}")
    try:
        apache_kafka.install()
    except apache_kafka.KafkaError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`HOST:PORT` of a real Apache Kafka for the whole session: tests use topics of their own names or clear up."""
    home = tmp_path_factory.mktemp("kafka")
    address = apache_kafka.start(home)
    yield address
    apache_kafka.end(home, signal.SIGKILL)


@pytest.fixture
def own_kafka(kafka_jars: None, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(`HOST:PORT`, folder) of a broker that the test may kill; start it again with `apache_kafka.start(folder)`."""
    home = tmp_path / "kafka"
    address = apache_kafka.start(home)
    yield address, home
    apache_kafka.end(home, signal.SIGKILL)


@pytest.fixture(scope="module")
def short_home() -> Iterator[Path]:
    """A MANTA_HOME under a short path (Ray's sockets end at 107 bytes), gone at the end of the module."""
    home = Path(tempfile.mkdtemp(prefix="m-", dir="/tmp"))
    yield home
    shutil.rmtree(home, ignore_errors=True)
