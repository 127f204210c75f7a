"""Another node of a system on this machine."""

import signal
import subprocess
import sys

import psutil

from app.settings import Settings
from deployments.environment import child_environment, environment
from deployments.run import Run


class AnotherNode:
    """A second raylet on this machine; both nodes share the home."""

    def __init__(self, settings: Settings, run: Run) -> None:
        # Ray would look for the head on this machine's outer address
        start = (
            "from ray._private import services; services.resolve_ip_for_localhost = lambda host: host; "
            "from deployments.head import main; main()"
        )
        options = [f"--address={run.address}", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--block"]
        command = [sys.executable, "-c", start, "start", *options]
        variables = child_environment(environment(settings, run.home, run.ports, run.session))
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"  # Ray asks for it on loopback
        self._process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, start_new_session=True)

    def kill(self) -> None:
        mine = psutil.Process(self._process.pid)
        for process in (*mine.children(recursive=True), mine):
            process.send_signal(signal.SIGKILL)
        self._process.wait()
