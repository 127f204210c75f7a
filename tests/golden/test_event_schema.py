"""Every released version of the messages stays readable: keys are added with a default, never removed or retyped."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from app.events.columns import RECORDS
from app.events.decode import TABLES, decode_topic
from app.events.schema import SCHEMA_VERSION, json_schemas
from app.settings import EventSettings

GOLDEN = Path(__file__).parent
DOCS = GOLDEN.parent.parent / "docs" / "schemas"
VERSIONS = range(1, SCHEMA_VERSION + 1)


def released(version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"event_schema_v{version}.json").read_text())
    return found


def kinds(prop: dict[str, Any]) -> set[str]:
    """JSON types that a property takes."""
    options = prop.get("anyOf", [prop])
    return {str(option.get("type", option.get("$ref", "any"))) for option in options}


@pytest.mark.parametrize("version", VERSIONS)
def test_no_released_key_is_removed_retyped_or_newly_required(version: int) -> None:
    now = json_schemas()
    for name, schema in released(version)["messages"].items():
        for key, prop in schema["properties"].items():
            assert key in now[name]["properties"], f"{name}.{key} was removed"
            missing = kinds(prop) - kinds(now[name]["properties"][key])
            assert not missing, f"{name}.{key} does not take {missing} any more"
        added = set(now[name].get("required", [])) - set(schema.get("required", []))
        assert not added, f"{name}: {added} must have a default"


@pytest.mark.parametrize("version", VERSIONS)
def test_no_released_lake_column_is_removed_or_retyped(version: int) -> None:
    for table, columns in released(version)["tables"].items():
        for name, kind in columns.items():
            assert str(TABLES[table].field(name).type) == kind


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_of_each_version_are_read(version: int) -> None:
    for topic, samples in released(version)["samples"].items():
        rows = [
            {"partition": 0, "offset": place, "record_time": 1_800_000_000_000, "key": b"1", "value": text.encode()}
            for place, text in enumerate(map(json.dumps, samples))
        ]
        decoded = decode_topic(topic, pa.Table.from_pylist(rows, RECORDS), EventSettings())
        assert decoded.rejected.to_pylist() == []
        assert len(decoded.events) == len(samples)


def test_what_stands_is_what_is_released() -> None:
    """A change here is a new version, or an added key: then regenerate the golden file of this version."""
    tables = {name: {field.name: str(field.type) for field in schema} for name, schema in TABLES.items()}
    golden = released(SCHEMA_VERSION)
    assert golden["messages"] == json.loads(json.dumps(json_schemas()))
    assert golden["tables"] == tables


def test_the_documents_are_generated_from_the_schema() -> None:
    for name, schema in json_schemas().items():
        assert json.loads((DOCS / f"{name}.json").read_text()) == schema
