"""The house's rules on imports and files: floors, sides, Ray at the rim, short files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the ground up; a module imports from its own package and from floors below.
FLOORS = (
    ("app.section",),
    ("app.errors", "app.event_weights", "app.faults", "app.time_to_live", "app.own_folders", "app.heap"),
    ("app.surfaces", "app.weighing", "app.lock_file"),
    ("app.settings", "app.artifacts"),
    ("app.database",),
    ("app.erasure",),
    ("app.models",),
    ("app.events", "app.retrieval", "app.evaluation", "app.cache", "app.degrade"),
    ("app.lake", "app.rules"),
    ("app.state",),
    ("app.stats",),
    ("app.features",),
    ("app.ranking",),
    ("app.bundles",),
    ("app.chain",),
    ("app.recommend",),
    ("app.erase",),
    ("app.door", "app.smoke"),
    ("tune", "app.api"),
    ("deployments",),
    ("scripts",),
)
FLOOR = {package: height for height, packages in enumerate(FLOORS) for package in packages}
FILES = sorted(
    path.relative_to(ROOT) for top in ("app", "tune", "deployments", "scripts") for path in (ROOT / top).rglob("*.py")
)
MAX_LINES = 500


def package_of(module: str) -> str | None:
    """The package that has a floor, or None for what is not ours."""
    name = ".".join(module.split(".")[:2])
    return next((found for found in (name, name.split(".")[0]) if found in FLOOR), None)


def imported(path: Path) -> list[str]:
    tree = ast.parse((ROOT / path).read_text(), str(path))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            names += [f"{module}.{alias.name}" if module == "app" else module for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_the_house_rules(path: Path) -> None:
    own = package_of(".".join(path.with_suffix("").parts))
    assert own is not None or path.name == "__init__.py", f"{path} has no floor: give it one in FLOORS"
    names = imported(path)
    for name in names:
        other = package_of(name)
        if own is None or other is None or other == own:
            continue
        assert FLOOR[other] < FLOOR[own], f"{path} imports {name}, which is not below it"
    tops = {name.split(".")[0] for name in names}
    if path.parts[0] == "app":
        assert "ray" not in tops, f"{path} imports Ray: that is for tune/ and deployments/"
    if path.parts[0] in {"tune", "deployments"}:
        assert not tops & ({"tune", "deployments"} - {path.parts[0]}), f"{path} imports the other side"
    if path != Path("scripts/cli.py"):
        assert not {"tune", "deployments"} <= tops, f"{path} imports both sides: only scripts/cli.py may"
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= MAX_LINES, f"{path} is longer than {MAX_LINES} lines"
    if path.parts[0] == "deployments":
        assert "__future__" not in tops, f"{path}: Serve needs annotations as classes"


def test_no_drawer_for_everything() -> None:
    drawers = {"utils", "helpers", "common", "manager", "misc"}
    assert not [path for path in FILES if drawers & {*path.parts[:-1], path.stem}]
