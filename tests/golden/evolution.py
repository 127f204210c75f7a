"""How a message may change: keys are added with a default; none is removed, renamed, retyped or narrowed."""

from typing import Any

Schema = dict[str, Any]
# Of these the new value must be at most, of those at least the old one; absent: unbounded.
_LOWER = ("minimum", "minLength", "minItems", "exclusiveMinimum")
_UPPER = ("maximum", "maxLength", "maxItems", "exclusiveMaximum")


def violations(old: Schema, new: Schema) -> list[str]:
    """What a reader or a writer of the old JSON Schema would stumble over in the new one; empty: nothing."""
    return _object("", old, new, old, new)


def _object(path: str, old: Schema, new: Schema, old_root: Schema, new_root: Schema) -> list[str]:
    found = []
    then, now = old.get("properties", {}), new.get("properties", {})
    for key, prop in then.items():
        if key not in now:
            found.append(f"{path}{key} was removed or renamed")
        else:
            found += _property(f"{path}{key}", prop, now[key], old_root, new_root)
    added = sorted(set(new.get("required", [])) - set(old.get("required", [])))
    found += [f"{path}{key} became required: it needs a default" for key in added]
    dropped = sorted(set(old.get("required", [])) - set(new.get("required", [])))
    found += [f"{path}{key} may be absent now: older readers need it" for key in dropped]
    if old.get("additionalProperties", True) is not False and new.get("additionalProperties", True) is False:
        found.append(f"{path}* is refused now: unknown keys were kept")
    return found


def _property(path: str, old: Schema, new: Schema, old_root: Schema, new_root: Schema) -> list[str]:
    found = []
    options = _options(new, new_root)
    for kind, option in _options(old, old_root).items():
        if kind not in options:
            found.append(f"{path} does not take {kind} any more")
            continue
        other = options[kind]
        rose = [name for name in _LOWER if name in other and other[name] > option.get(name, float("-inf"))]
        fell = [name for name in _UPPER if name in other and other[name] < option.get(name, float("inf"))]
        found += [f"{path}: {name} is {other[name]} now: narrower" for name in rose + fell]
        if other.get("pattern", option.get("pattern")) != option.get("pattern"):
            found.append(f"{path}: the pattern changed")
        if other.get("format") != option.get("format"):
            found.append(f"{path}: the format changed")
        if kind == "array" and "items" in option:
            found += _property(f"{path}[]", option["items"], other.get("items", {}), old_root, new_root)
        if kind == "object":
            found += _object(f"{path}.", option, other, old_root, new_root)
    widened = sorted(set(options) - set(_options(old, old_root)))
    found += [f"{path} takes {kind} too: older readers know only the old type" for kind in widened]
    if "default" in old and old["default"] != new.get("default"):
        found.append(f"{path}: the default changed")
    return found


def _options(prop: Schema, root: Schema) -> dict[str, Schema]:
    """JSON type to what is said of it, references followed; "any" where no type is named."""
    options = [_followed(option, root) for option in prop.get("anyOf", [prop])]
    outer = {key: value for key, value in prop.items() if key not in ("anyOf", "$ref")}
    return {str(option.get("type", "any")): {**outer, **option} for option in options}


def _followed(option: Schema, root: Schema) -> Schema:
    if "$ref" not in option:
        return option
    target: Schema = root["$defs"][option["$ref"].rpartition("/")[2]]
    return target
