"""The page that Ray's HAProxy answers with where no replica does."""

import json
import subprocess
import sys
from pathlib import Path

from deployments.environment import WORKERS

PROGRAM = """
import importlib, sys
for name in sys.argv[2].split(","):
    importlib.import_module(name)
assert "app.api.problems" not in sys.modules, "every worker pays for what only HAProxy's needs"
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
api = HAProxyApi(HAProxyConfig(socket_path=sys.argv[1] + "/s"), config_file_path=sys.argv[1] + "/c")
print(api.cfg.error_file_path)
"""


def test_a_worker_that_runs_haproxy_gives_it_a_503_to_be_tried_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), WORKERS["RAY_preload_python_modules"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, _, body = Path(done.stdout.strip().splitlines()[-1]).read_bytes().partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert headers == {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Retry-After": "1",
    }
    told = json.loads(body)
    assert told["status"] == 503
    assert "event_id" in told["detail"]
