"""cluster.yaml: Ray's own schema takes it, and every node has its environment before Ray starts."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from app.settings import load_settings
from deployments.environment import EVERYWHERE, LOGS, SERVE, WORKERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def exported(config: dict[str, Any]) -> dict[str, str]:
    """What the nodes' environment file exports."""
    script = next(command for command in config["setup_commands"] if ".manta-node" in command)
    lines = [line.strip() for line in script.splitlines() if line.strip().startswith("export ")]
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_rays_schema_takes_it(config: dict[str, Any]) -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)


def test_a_cpu_head_and_autoscaled_workers(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    for name in ("cpu_worker", "gpu_worker"):
        assert types[name]["max_workers"] > types[name].get("min_workers", 0)
    assert types["gpu_worker"].get("min_workers", 0) == 0


def test_every_node_has_token_path_and_serve_variables(config: dict[str, Any]) -> None:
    node = exported(config)
    one_machine = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}  # keeps Ray on loopback: not where machines must meet
    wanted = {name: value for name, value in (EVERYWHERE | SERVE | LOGS | WORKERS).items() if name not in one_machine}
    assert {name: node.get(name) for name in wanted} == wanted
    assert one_machine.isdisjoint(node)
    assert node["RAY_AUTH_TOKEN_PATH"] == "$HOME/.manta-token"
    assert "/home/ubuntu/.manta-token" in config["file_mounts"]
    assert node["PATH"].startswith("$HOME/manta/.venv/bin:")


def test_every_ray_start_comes_after_the_environment(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert any("ray start" in command for command in commands)
        assert all(command.startswith(". $HOME/.manta-node;") for command in commands)


def test_its_settings_are_settings(config: dict[str, Any]) -> None:
    given = {name: value.strip("'") for name, value in exported(config).items() if name.startswith("MANTA_")}
    settings = load_settings(ROOT / "manta.yaml", environ=given)
    assert settings.lake.catalog["type"] == "sql"
    assert settings.http.host == "0.0.0.0"
