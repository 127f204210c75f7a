"""Every released version of every message stays readable; what is newer is put aside with that reason."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from pydantic import BaseModel

from app.bundles.registry import Promotion
from app.events import columns, schema
from app.events.columns import EVENT_COLUMNS, RECORDS
from app.events.decode import TABLES, decode_topic
from app.events.messages import DeadLetter, Published, ReplayNote, json_schemas
from app.events.schema import SCHEMA_VERSION, Event, EventRejected, validate_event
from app.lake import tables
from app.settings import EventSettings
from scripts.schema_reference import document
from tests.golden.evolution import Schema, violations

GOLDEN = Path(__file__).parent
DOCS = GOLDEN.parent.parent / "docs" / "schemas"
VERSIONS = range(1, SCHEMA_VERSION + 1)
MESSAGES = ("dead_letter", "event", "impression", "item", "published", "replay_note", "user")
WRITTEN: dict[str, type[BaseModel]] = {"dead_letter": DeadLetter, "replay_note": ReplayNote, "published": Published}


def released(version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"event_schema_v{version}.json").read_text())
    return found


def records(values: list[dict[str, Any]]) -> pa.Table:
    rows = [
        {"partition": 0, "offset": place, "record_time": 1_800_000_000_000, "key": b"1", "value": orjson.dumps(value)}
        for place, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, RECORDS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("message", MESSAGES)
def test_a_released_message_changes_by_the_rules_alone(message: str, version: int) -> None:
    assert violations(released(version)["messages"][message], json_schemas()[message]) == []


def _remove(schema: Schema) -> None:
    del schema["properties"]["value"]


def _rename(schema: Schema) -> None:
    schema["properties"]["rating"] = schema["properties"].pop("value")


def _retype(schema: Schema) -> None:
    schema["properties"]["value"]["anyOf"][0]["type"] = "string"


def _widen(schema: Schema) -> None:
    schema["properties"]["item_id"]["anyOf"].append({"type": "integer"})


def _narrow(schema: Schema) -> None:
    schema["properties"]["user_id"]["anyOf"][0]["maxLength"] = 64


def _require(schema: Schema) -> None:
    schema["properties"]["shop"] = {"type": "string"}
    schema["required"].append("shop")


def _default(schema: Schema) -> None:
    schema["properties"]["schema_version"]["default"] = 2


def _refuse_unknown(schema: Schema) -> None:
    schema["additionalProperties"] = False


BREAKS = (_remove, _rename, _retype, _widen, _narrow, _require, _default, _refuse_unknown)


@pytest.mark.parametrize("change", BREAKS, ids=[change.__name__ for change in BREAKS])
def test_the_rules_see_each_kind_of_break(change: Callable[[Schema], None]) -> None:
    then = json_schemas()["event"]
    now = copy.deepcopy(then)
    change(now)
    assert violations(then, now)


def test_the_rules_look_into_lists_and_let_an_added_key_pass() -> None:
    then = json_schemas()["impression"]
    now = copy.deepcopy(then)
    now["properties"]["page"] = {"type": "integer", "default": 1}
    now["$defs"]["ShownItem"]["properties"]["slot"] = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    assert violations(then, now) == []
    del now["$defs"]["ShownItem"]["properties"]["score"]
    assert violations(then, now) == ["items[].score was removed or renamed"]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_released_lake_column_is_removed_or_retyped(version: int) -> None:
    for table, fields in released(version)["tables"].items():
        for name, kind in fields.items():
            assert str(tables.TABLES[table].field(name).type) == kind


def test_the_columns_have_every_key_of_the_edge() -> None:
    assert set(Event.model_fields) <= set(EVENT_COLUMNS.names)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("known", [SCHEMA_VERSION, SCHEMA_VERSION + 1])
def test_messages_of_each_version_are_read(version: int, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this Manta, and by the next one, for which today's are older."""
    monkeypatch.setattr(schema, "SCHEMA_VERSION", known)
    monkeypatch.setattr(columns, "SCHEMA_VERSION", known)
    for topic, samples in released(version)["samples"].items():
        decoded = decode_topic(topic, records(samples), EventSettings())
        assert decoded.rejected.to_pylist() == []
        assert len(decoded.events) == len(samples)
        assert decoded.events.schema.equals(TABLES[topic])
    for name, samples in released(version)["written"].items():
        for sample in samples:
            assert sample.items() <= WRITTEN[name].model_validate(sample).model_dump().items()


def test_a_promotion_is_published_as_the_schema_says() -> None:
    promotion = Promotion("p", "promote", "b", ("home",), False, "live", None, {"ndcg_at_10": 0.1}, 2, 2, 1.5, 2.0)
    message = Published.model_validate(promotion.as_json())
    assert message.model_extra == {}
    no_offer = dict.fromkeys(("address", "manifest_sha256", "lineage"))
    assert message.model_dump() == {"schema_version": SCHEMA_VERSION, **promotion.as_json(), **no_offer}


@pytest.mark.parametrize("topic", TABLES)
def test_what_is_newer_goes_to_the_dead_letters_with_that_reason(topic: str) -> None:
    """Whatever else of it is not as it is known here, and among messages that are: these are read."""
    good = released(SCHEMA_VERSION)["samples"][topic][0]
    newer = [
        good | {"schema_version": SCHEMA_VERSION + 1},
        {"schema_version": SCHEMA_VERSION + 1, "user_id": {"id": 1}, "item_id": ["2"], "deep": {"er": [{}]}},
    ]
    decoded = decode_topic(topic, records([good, *newer, good]), EventSettings())
    assert decoded.events["offset"].to_pylist() == [0, 3]
    assert decoded.rejected["reason"].to_pylist() == ["version", "version"]
    assert decoded.rejected["detail"][0].as_py() == f"schema_version: found {SCHEMA_VERSION + 1}, wanted at most 1"


def test_what_is_newer_is_refused_at_the_edge() -> None:
    with pytest.raises(EventRejected) as caught:
        validate_event({"schema_version": SCHEMA_VERSION + 1}, 0, EventSettings())
    assert caught.value.code == "version"


def test_what_stands_is_what_is_released() -> None:
    """A change here is a new version, or an added key: then regenerate the golden file of this version."""
    stand = {name: {field.name: str(field.type) for field in fields} for name, fields in tables.TABLES.items()}
    golden = released(SCHEMA_VERSION)
    assert golden["messages"] == json.loads(json.dumps(json_schemas()))
    assert golden["tables"] == stand


def test_the_documents_are_generated_from_the_schema() -> None:
    """`python -m scripts.schema_reference` writes them."""
    assert {path.stem: path.read_text() for path in DOCS.glob("*.json")} == {
        name: document(found) for name, found in json_schemas().items()
    }
