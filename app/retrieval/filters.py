"""Filters of requests as masks over the live rows, kept by their canonical JSON and mended as items change."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import RequestInvalid
from app.retrieval.catalogue import LiveCatalogue
from app.retrieval.columns import NumberColumn, OtherColumn, TermColumn, column_of
from app.retrieval.conditions import check, check_operands, passes

KEPT = 256  # masks kept, least recently used out first

Conditions = Mapping[str, Mapping[str, Any]]


class Filters:
    """Masks over the rows of one LiveCatalogue. Owned by the event loop, like the catalogue."""

    def __init__(self, live: LiveCatalogue) -> None:
        self._live = live
        self._columns: dict[str, NumberColumn | TermColumn | OtherColumn] = {}
        self._masks: OrderedDict[bytes, tuple[NDArray[np.bool_], int]] = OrderedDict()

    def mask(self, filters: Conditions) -> tuple[bytes, NDArray[np.bool_]]:
        """The filter's canonical form and bool (len(live),): which rows pass, whether available or not.

        Raises:
            RequestInvalid: a column that the items lack, or a malformed condition.
        """
        key = orjson.dumps(filters, option=orjson.OPT_SORT_KEYS)
        kept = self._masks.pop(key, None)
        if kept is None:
            mask, seen = self._fresh(filters), 0
        else:
            mask, seen = kept
        mask = self._mended(mask, seen, filters)
        self._masks[key] = mask, len(self._live.changed)
        if len(self._masks) > KEPT:
            self._masks.popitem(last=False)
        return key, mask

    def _fresh(self, filters: Conditions) -> NDArray[np.bool_]:
        """The mask over the bundle's rows as the bundle has them."""
        check(filters)
        table = self._live.catalogue.columns
        mask = np.ones(self._live.n_items, np.bool_)
        for name, condition in filters.items():
            if name not in self._live.column_names:
                known = ", ".join(sorted(self._live.column_names)) or "none"
                raise RequestInvalid(f"filters.{name}", name, f"a column of the items ({known})")
            if name not in table.column_names:  # only items that came later have it
                mask &= passes(condition, None)
                continue
            if name not in self._columns:
                self._columns[name] = column_of(table.column(name))
            check_operands(name, condition, self._columns[name].holds)
            mask &= self._columns[name].mask(condition)
        return mask

    def _mended(self, mask: NDArray[np.bool_], seen: int, filters: Conditions) -> NDArray[np.bool_]:
        """The mask with the rows that changed since `seen` looked at again; a new array, or the same if none did."""
        changed = self._live.changed[seen:]
        if not changed and len(mask) == len(self._live):
            return mask
        mended = np.zeros(len(self._live), np.bool_)
        mended[: len(mask)] = mask
        for row in set(changed):
            columns = self._live.columns_of(row)
            mended[row] = all(passes(condition, columns.get(name)) for name, condition in filters.items())
        return mended
