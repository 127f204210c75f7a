"""What a filter condition means for one value; the reference that the column layouts agree with."""

from collections.abc import Mapping
from typing import Any

from app.errors import RequestInvalid

LISTS = ("any", "all", "none")
COMPARISONS = ("gte", "gt", "lte", "lt")
OPERATORS = (*LISTS, "eq", *COMPARISONS, "exists")


def passes(condition: Mapping[str, Any], value: Any) -> bool:
    """Whether a column's value (None: missing) passes every operator of the condition.

    A list passes `any`, `all` and `none` by its elements and `eq` as a set; a plain value counts as a list of one.
    A missing value passes `none` and `exists: false` alone. A value of another type than the wanted one is unequal,
    and neither above nor below it.
    """
    return all(_passes(operator, wanted, value) for operator, wanted in condition.items())


def _passes(operator: str, wanted: Any, value: Any) -> bool:
    if operator == "exists":
        return (value is not None) == bool(wanted)
    elements = value if isinstance(value, list) else [] if value is None else [value]
    if operator == "any":
        return any(one in elements for one in wanted)
    if operator == "none":
        return not any(one in elements for one in wanted)
    if operator == "all":
        return all(one in elements for one in wanted)
    if operator == "eq":
        if isinstance(value, list):
            terms = wanted if isinstance(wanted, list) else [wanted]
            return len(value) == len(terms) and all(one in value for one in terms)
        return value is not None and bool(value == wanted)
    return any(_compares(operator, one, wanted) for one in elements)


def _compares(operator: str, value: Any, wanted: Any) -> bool:
    if isinstance(value, str) != isinstance(wanted, str) or isinstance(value, list | dict):
        return False
    if operator == "gte":
        return bool(value >= wanted)
    if operator == "gt":
        return bool(value > wanted)
    return bool(value <= wanted) if operator == "lte" else bool(value < wanted)


def check(filters: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses operators that there are not and operands of the wrong shape.

    Raises:
        RequestInvalid: with the field, what was found and what was wanted.
    """
    for column, condition in filters.items():
        if not isinstance(condition, Mapping) or not condition:
            raise RequestInvalid(f"filters.{column}", condition, f"one or more of {', '.join(OPERATORS)}")
        for operator, wanted in condition.items():
            field = f"filters.{column}.{operator}"
            if operator not in OPERATORS:
                raise RequestInvalid(field, operator, f"one of {', '.join(OPERATORS)}")
            if operator in LISTS and not isinstance(wanted, list | tuple):
                raise RequestInvalid(field, wanted, "a list of values")
            if operator in COMPARISONS and not isinstance(wanted, int | float | str):
                raise RequestInvalid(field, wanted, "a number or a string")
            if operator == "exists" and not isinstance(wanted, bool):
                raise RequestInvalid(field, wanted, "true or false")


def check_operands(column: str, condition: Mapping[str, Any], holds: type | tuple[type, ...] | None) -> None:
    """Refuses operands that no value of the column could equal or be compared with. `holds`: types; None: any.

    Raises:
        RequestInvalid: with the field, what was found and what was wanted.
    """
    if holds is None:
        return
    wanted_kind = "text" if holds is str else "a number"
    for operator, wanted in condition.items():
        if operator == "exists":
            continue
        for one in wanted if isinstance(wanted, list | tuple) else [wanted]:
            if not isinstance(one, holds):
                raise RequestInvalid(
                    f"filters.{column}.{operator}", one, f"{wanted_kind}, as the items have in {column}"
                )
