"""Settings -> the Serve application: gateway, and where a surface is distributed, retriever and ranker."""

import contextlib
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions
from ray.serve.schema import LoggingConfig

from app.settings import AutoscaleSettings, Settings, home_folder, load_settings
from deployments.coordinator import ensure_coordinator
from deployments.gateway import Gateway
from deployments.scaling import by_requests_in_flight
from deployments.stages import Retriever, Scorer
from deployments.state_writer import ensure_state_writers

APPLICATION = "manta"
# What a replica works on beyond our own limit before Serve's would show: the client must see our 429.
ABOVE_OURS = 64
# Calls that a stage's replica takes at a time; each carries a micro-batch.
STAGE_CALLS = 8


def build(args: dict[str, Any]) -> Application:
    """What `deployments/serve.yaml` names.

    Args:
        args: `settings`: a settings file (default: `$MANTA_SETTINGS`, as on every node of a running system);
            `home`: MANTA_HOME (default: that of the environment).
    """
    file = args.get("settings") or os.environ.get("MANTA_SETTINGS")
    home = Path(args["home"]) if args.get("home") else home_folder()
    return application(load_settings(Path(file) if file else None), home)


def application(settings: Settings, home: Path) -> Application:
    """The application; `settings` name the broker's address."""
    surfaces = settings.surfaces.values()
    stages: list[Application] = []
    if any(surface.topology == "distributed" for surface in surfaces):
        for name, stage, section in (
            ("retriever", Retriever, settings.serve.retriever),
            ("ranker", Scorer, settings.serve.ranker),
        ):
            deployment = serve.deployment(
                stage, name=name, max_ongoing_requests=STAGE_CALLS, **_options(section, settings)
            )
            stages.append(deployment.bind(settings, str(home), section.num_cpus))
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        max_ongoing_requests=settings.serve.max_ongoing_requests + ABOVE_OURS,
        **_options(settings.serve.gateway, settings, policy=AutoscalingPolicy(policy_function=by_requests_in_flight)),
    )
    return gateway.bind(settings, str(home), *stages)


def deploy(settings: Settings, home: Path) -> None:
    """Starts what the application needs and the application itself, and returns when its replicas are up.

    Ray must be joined, and `settings` name the broker's address. What runs already is updated to these settings.
    """
    ensure_state_writers(settings, home)
    ensure_coordinator(settings, home)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what is happening, the command says itself
    with ThreadPoolExecutor(1, "serve-start") as beside:  # it waits for the proxies; the replicas need not
        started = beside.submit(
            serve.start,
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host=settings.http.host, port=settings.http.port),
            logging_config=_logging(settings),
        )
        _wait_for_controller(started)
        serve.run(application(settings, home), name=APPLICATION, route_prefix="/")
        started.result()


def _wait_for_controller(started: "Future[None]") -> None:
    """Returns once Serve's controller has its name: from then on an application can be given to it."""
    while not started.done():
        with contextlib.suppress(ValueError):
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
            return
        time.sleep(0.05)
    started.result()


def _options(section: AutoscaleSettings, settings: Settings, policy: AutoscalingPolicy | None = None) -> dict[str, Any]:
    """What every deployment has: reserved resources, autoscaling, health checks, a quiet log."""
    scaling: dict[str, Any] = {"policy": policy} if policy is not None else {}
    actor: dict[str, Any] = {"num_cpus": section.num_cpus}
    if section.num_gpus:
        actor["num_gpus"] = section.num_gpus
    return {
        "ray_actor_options": actor,
        "max_queued_requests": section.max_queued_requests,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=section.min_replicas,
            max_replicas=section.max_replicas,
            target_ongoing_requests=section.target_ongoing_requests,
            upscale_delay_s=section.upscale_delay_s,
            downscale_delay_s=section.downscale_delay_s,
            metrics_interval_s=min(5.0, max(0.5, section.upscale_delay_s / 2)),
            look_back_period_s=min(10.0, max(2.0, section.upscale_delay_s)),
            **scaling,
        ),
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": 15.0,
        "logging_config": _logging(settings),
    }


def _logging(settings: Settings) -> LoggingConfig:
    """No line per request: Serve's has the path as it came, with ids of users (ours: `deployments.access_log`)."""
    return LoggingConfig(log_level=settings.log.level, enable_access_log=False)
