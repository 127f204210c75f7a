"""What an answer must obey on every rung of the ladder: which rows a question may never get."""

from collections.abc import Sequence

import numpy as np

from app.models.interactions import Rows
from app.surfaces import RuleSettings


def banned_rows(rules: RuleSettings, consumed: Rows, excluded: Rows, anchors: Rows, chosen: bool) -> Rows:
    """int32: rows that must not be in the answer, in no order, perhaps twice.

    Args:
        consumed: rows of the whole history, whatever their weight.
        excluded: rows that the request names in `exclude`.
        anchors: rows of `items`: nobody is shown the page he is on.
        chosen: the request names its `candidates`: then only `exclude` bans.
    """
    if chosen:
        return excluded
    parts = [excluded, anchors, consumed] if rules.seen == "never" else [excluded, anchors]
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else excluded


def effects(rules: RuleSettings, consumed: Sequence[int], row: int) -> list[tuple[str, str]]:
    """(rule, effect) of the rules that touched an item that is shown: a consumed one is there by leave."""
    if row not in consumed:
        return []
    return [("seen", "allowed" if rules.seen == "allowed" else "kept: named in candidates")]
