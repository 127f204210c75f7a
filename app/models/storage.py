"""How every family is saved: one JSON file of parameters and facts, one safetensors file of arrays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from app.errors import BundleError

FORMAT = 1
JSON_FILE = "model.json"
ARRAYS_FILE = "arrays.safetensors"

Arrays = dict[str, NDArray[Any]]


class FamilyParams(BaseModel):
    """Parameters of a family: unknown keys are refused, values never change after fitting."""

    model_config = ConfigDict(extra="forbid", frozen=True)


P = TypeVar("P", bound=FamilyParams)


def checked(given: BaseModel | None, wanted: type[P]) -> P:
    """The given parameters, or the defaults for None.

    Raises:
        TypeError: parameters of another family.
    """
    if given is None:
        return wanted()
    if not isinstance(given, wanted):
        raise TypeError(f"params: found {type(given).__name__}, wanted {wanted.__name__}")
    return given


def save_model(
    folder: Path, family: str, params: FamilyParams, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]
) -> None:
    """Writes `model.json` and `arrays.safetensors` into an existing folder; the same model gives the same bytes."""
    document = {"format": FORMAT, "family": family, "params": params.model_dump(mode="json"), "facts": dict(facts)}
    (folder / JSON_FILE).write_text(json.dumps(document, indent=1, sort_keys=True))
    save_file({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}, folder / ARRAYS_FILE)


def load_model_files(folder: Path, family: str, params: type[P]) -> tuple[P, Arrays, dict[str, Any]]:
    """(params, arrays, facts) as `save_model` wrote them.

    Raises:
        BundleError: a file is missing or unreadable, or holds another family or format.
    """
    try:
        document = json.loads((folder / JSON_FILE).read_text())
        arrays = load_file(folder / ARRAYS_FILE)
        found = (document["family"], document["format"])
        if found != (family, FORMAT):
            raise BundleError(f"{folder / JSON_FILE}: found family and format {found}, wanted {(family, FORMAT)}")
        return params.model_validate(document["params"]), dict(arrays), dict(document["facts"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
        raise BundleError(f"{folder}: not a readable {family} model ({error})") from error
