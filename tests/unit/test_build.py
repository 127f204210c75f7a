"""Settings to a Serve application, and the file that `serve deploy` takes, without Ray."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from app.settings import Settings
from deployments.build import APPLICATION, application, build

ROOT = Path(__file__).resolve().parents[2]


def deployments(settings: dict[str, Any], home: Path) -> dict[str, Any]:
    built = build_app(application(Settings.model_validate(settings), home), name=APPLICATION, route_prefix="/")
    return {deployment.name: deployment for deployment in built.deployments}


def test_stages_are_deployed_where_a_surface_is_distributed(tmp_path: Path) -> None:
    assert set(deployments({"surfaces": {"home": {}}}, tmp_path)) == {"gateway"}
    mixed = {"surfaces": {"home": {}, "related": {"topology": "distributed"}}}
    assert set(deployments(mixed, tmp_path)) == {"gateway", "retriever", "ranker"}


def test_resources_and_scaling_are_those_of_the_settings(tmp_path: Path) -> None:
    found = deployments(
        {
            "serve": {
                "max_ongoing_requests": 100,
                "gateway": {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 7, "num_cpus": 0.3},
                "ranker": {"num_gpus": 0.5, "upscale_delay_s": 1},
            },
            "surfaces": {"home": {"topology": "distributed"}},
        },
        tmp_path,
    )
    gateway = found["gateway"]
    assert gateway.ray_actor_options["num_cpus"] == 0.3
    assert gateway.max_ongoing_requests > 100  # the client must see our 429, not Serve's limit
    scaling = gateway._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 7)
    assert found["ranker"].ray_actor_options["num_gpus"] == 0.5


def test_the_file_for_serve_deploy_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deployments" / "serve.yaml").read_text()))
    (entry,) = document.applications
    assert (entry.name, entry.import_path) == (APPLICATION, "deployments.build:build")
    settings = tmp_path / "settings.yaml"
    settings.write_text("surfaces: {shop: {}}\n")
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    for args in ({"settings": str(settings), "home": str(tmp_path)}, entry.args):
        monkeypatch.setenv("MANTA_SETTINGS", str(settings))
        assert build(dict(args)) is not None
