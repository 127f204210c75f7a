"""`docs/delivery.md` names the tests that prove each guarantee: they are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`")


def functions_of(path: Path) -> set[str]:
    found = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_is_named_is_there() -> None:
    text = (ROOT / "docs" / "delivery.md").read_text()
    named = NAMED.findall(text)
    assert len(named) == text.count("::test_") > 30
    missing = [f"{file}::{name}" for file, name in named if name not in functions_of(ROOT / file)]
    assert missing == []


def test_every_guarantee_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "delivery.md").read_text().splitlines() if line.startswith("| ")]
    guarantees = [row for row in rows if not row.startswith("| guarantee ")]
    assert [row for row in guarantees if "::test_" not in row and not row.endswith("| the same |")] == []
