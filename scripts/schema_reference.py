"""The JSON Schema of every message, written to `docs/schemas/`: `python -m scripts.schema_reference`."""

import json
from pathlib import Path

from app.events.messages import json_schemas

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def document(schema: dict[str, object]) -> str:
    """The text of one file."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for name, schema in json_schemas().items():
        (FOLDER / f"{name}.json").write_text(document(schema))
