"""Writes docs/settings.md from the typed settings: `python -m scripts.settings_reference > docs/settings.md`."""

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.event_weights import EventWeight
from app.settings import PREFIX, Settings
from app.surfaces import RuleSettings, SourceSettings, SurfaceSettings

HEAD = """# Settings

`manta.yaml` (or `--settings FILE`, or `MANTA_SETTINGS`); each key also in the environment as `MANTA_SECTION__KEY`.
Environment over file over default. Unknown keys are refused. This page is generated from the typed settings:
`python -m scripts.settings_reference` prints it.
"""


def reference() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(_section(name, field) for name, field in Settings.model_fields.items()) + _surfaces()


def _section(name: str, field: FieldInfo) -> str:
    model = field.annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    intro = (model.__doc__ or "").strip() if model.__doc__ and "Section" not in model.__doc__ else ""
    rows = "".join(_row(key, inner, name) for key, inner in _flat(model, ""))
    return f"\n## {name}\n\n{intro}\n\n| key | default | environment | meaning |\n|---|---|---|---|\n{rows}"


def _flat(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner, inner_field in _flat(field.annotation, f"{prefix}{key}."):
                default = getattr(field.default, inner.rsplit(".", 1)[-1])
                yield (
                    inner,
                    FieldInfo(annotation=inner_field.annotation, default=default, description=inner_field.description),
                )
        else:
            yield prefix + key, field


def _row(key: str, field: FieldInfo, section: str) -> str:
    variable = PREFIX + section.upper() + "__" + key.upper().replace(".", "__")
    return f"| `{key}` | `{_plain(field.default)}` | `{variable}` | {field.description or ''} |\n"


def _surfaces() -> str:
    page = "\n## surfaces\n\nSurfaces by name; the first is the default. Each has these keys:\n\n"
    page += "| key | default | meaning |\n|---|---|---|\n"
    parts = ((SourceSettings, "sources[]."), (RuleSettings, "rules."), (EventWeight, "event_weights.TYPE."))
    for model, prefix in ((SurfaceSettings, ""), *parts):
        for key, field in model.model_fields.items():
            if key == "rules":
                continue
            default = "(required)" if field.is_required() else _plain(field.default)
            page += f"| `{prefix}{key}` | `{default}` | {field.description or ''} |\n"
    return page


def _plain(value: object) -> str:
    return json.dumps(value, default=lambda other: getattr(other, "model_dump", lambda: str(other))())


if __name__ == "__main__":
    print(reference(), end="")
