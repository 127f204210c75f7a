"""Weights of a torch module as named numpy arrays, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.errors import BundleError


def arrays_of(module: nn.Module, prefix: str) -> dict[str, NDArray[Any]]:
    """Every weight, named `prefix` + its name."""
    return {prefix + name: weight.detach().cpu().numpy() for name, weight in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: Mapping[str, NDArray[Any]], prefix: str) -> None:
    """Sets every weight of `module` from the arrays with that prefix.

    Raises:
        BundleError: names or shapes do not match.
    """
    found = {
        name.removeprefix(prefix): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        raise BundleError(f"{type(module).__name__}: saved weights do not fit its parameters ({error})") from error
