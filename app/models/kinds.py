"""What the order of a user's events says: nothing, what a short visit is about, or how a long history goes on."""

from typing import Literal

import numpy as np

from app.models.interactions import Interactions

Kind = Literal["sets", "sessions", "sequences"]

SHORT = 20  # mean events of a user below which users are sessions


def kind_of(data: Interactions) -> Kind:
    """`sets`, whose order says nothing (users stand one behind the other), short `sessions`, or long `sequences`."""
    users = np.count_nonzero(np.bincount(data.users, minlength=1))
    if np.count_nonzero(np.diff(data.users)) < users:
        return "sets"
    return "sessions" if len(data) < SHORT * users else "sequences"
