"""`scripts/bench [NAME...] [--json FILE]`: runs benchmarks of this folder, each a module with `run() -> dict`."""

import argparse
import ast
import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> dict[str, str]:
    """Benchmarks by name with the first line of what they say about themselves; nothing is imported for that."""
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        module = ast.parse(path.read_text())
        if any(isinstance(one, ast.FunctionDef) and one.name == "run" for one in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", nargs="*", help="benchmarks to run; none: their list")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    known = names()
    if not given.name:
        for name, says in known.items():
            print(f"{name:16} {says}")
        return 0
    if unknown := [name for name in given.name if name not in known]:
        print(f"bench: no benchmark {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    figures = {}
    for name in given.name:
        print(f"bench: {name}", file=sys.stderr)
        figures[name] = importlib.import_module(f"tests.bench.{name}").run()
        print(json.dumps({name: figures[name]}, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
