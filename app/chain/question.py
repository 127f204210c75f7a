"""One request on its way through the chain: what it asks for, in rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.chain.parts import Chain
from app.chain.request import Request
from app.degrade import usable_until
from app.errors import NotFound, RequestInvalid
from app.models.interactions import Histories, Rows, Times, Weights
from app.retrieval.query import Query
from app.rules.rules import banned_rows
from app.state.reader import Kind, UserHistory
from app.time_to_live import in_ms, oldest_counted

GIVEN_GAP_MS = 1000  # distance in time of the entries of a history that the request itself names
FEW_WITHDRAWN = 64  # up to so many withdrawn rows are banned one by one; more become part of a mask
NO_ROWS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Entries:
    """History entries of one question, oldest first: rows int32, weights float32, times int64 (milliseconds)."""

    rows: Rows
    weights: Weights
    times: Times

    @classmethod
    def given(cls, rows: Rows, as_of: int) -> "Entries":
        """Entries that the request names: weight 1, just before `as_of`."""
        if not len(rows):
            return NOBODY
        ahead = np.arange(len(rows), 0, -1, dtype=np.int64) * GIVEN_GAP_MS
        return cls(rows, np.ones(len(rows), np.float32), as_of - ahead)

    def __add__(self, later: "Entries") -> "Entries":
        return Entries(
            np.concatenate([self.rows, later.rows]),
            np.concatenate([self.weights, later.weights]),
            np.concatenate([self.times, later.times]),
        )


NOBODY = Entries(NO_ROWS, np.empty(0, np.float32), np.empty(0, np.int64))


@dataclass(slots=True)
class Question:
    """One request in rows. `place`: where it stands in the batch.

    Attributes:
        asked: entries that candidates are retrieved for; ranked: entries that the ranker's features see.
        consumed: rows of the whole history.
        banned: rows never to show; only: the rows to rank, where the request names them.
        filter: bool over the live rows, None: no filter.
        until: second by which the stages must be done.
        user: the user's columns, where the bundle has features of them.
        votes: who named a row that no source named.
    """

    place: int
    request: Request
    k: int
    until: float
    as_of: int
    asked: Entries
    ranked: Entries
    consumed: Rows
    anchors: Rows
    banned: Rows
    only: Rows | None
    filter_key: bytes
    filter: NDArray[np.bool_] | None
    version: int
    user: dict[str, Any] | None = None
    votes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def passing(self, chain: Chain) -> NDArray[np.bool_]:
        """bool over the live rows: what may be shown, as of now. A new array."""
        live = chain.target.live
        passing = live.available.copy()
        if self.filter is not None:
            passing[: len(self.filter)] &= self.filter
            passing[len(self.filter) :] = False
        passing[self.banned] = False
        if self.only is not None:
            chosen = np.zeros(len(passing), np.bool_)
            chosen[self.only] = True
            passing &= chosen
        return passing


def history_key(request: Request) -> tuple[Kind, str] | None:
    """Whose stored history the request is about; None: nobody's, or it brings its own."""
    if request.user_id is not None:
        return ("user", request.user_id)
    return None if request.session_id is None else ("session", request.session_id)


def question_of(chain: Chain, place: int, request: Request, stored: UserHistory, now: float) -> Question:
    """The request in rows.

    Raises:
        RequestInvalid: an anchor is required, or a filter names a column that the items lack.
        NotFound: none of the anchors is known.
    """
    live, surface = chain.target.live, chain.surface
    if (ttl_ms := in_ms(surface.ttl_days)) is not None:
        stored = stored.since(oldest_counted(chain.state.as_of(), ttl_ms))
    as_of = max(chain.state.as_of(), int(stored.times[-1]) if len(stored.times) else 0)
    anchors = _anchors(chain, request)
    if request.history is not None:
        consumed = live.rows(request.history)
        personal = entries = Entries.given(consumed, as_of)
    else:
        consumed, entries = stored_entries(chain, stored)
        personal = entries if surface.personal else NOBODY
    around = Entries.given(anchors, as_of)
    only = None if request.candidates is None else np.unique(live.rows(request.candidates))
    excluded = live.rows(request.exclude) if request.exclude else NO_ROWS
    key, mask = chain.target.filters.mask(request.filters) if request.filters else (b"", None)
    return Question(
        place=place,
        request=request,
        k=request.k if request.k is not None else surface.k,
        until=usable_until(request.arrived or now, request.timeout_ms or surface.timeout_ms),
        as_of=as_of,
        asked=around if len(anchors) else personal,
        ranked=personal + around if len(anchors) else personal,
        consumed=consumed,
        anchors=anchors,
        banned=banned_rows(surface.rules, consumed, excluded, anchors, only is not None),
        only=only,
        filter_key=key,
        filter=mask,
        version=stored.version,
    )


def _anchors(chain: Chain, request: Request) -> Rows:
    if not request.items:
        if chain.surface.anchor == "required":
            raise RequestInvalid("items", request.items, f"at least one item: surface {chain.surface_name} needs it")
        return NO_ROWS
    anchors = chain.target.live.rows(request.items)
    if not len(anchors):
        raise NotFound(f"items: found {list(request.items)[:3]!r}, wanted at least one known item")
    return anchors


def stored_entries(chain: Chain, stored: UserHistory) -> tuple[Rows, Entries]:
    """(rows of all known entries, the newest entries that the surface weighs) of a stored history."""
    if not stored.item_ids:
        return NO_ROWS, NOBODY
    count = len(stored.item_ids)
    rows = np.fromiter(map(chain.target.live.row_of.get, stored.item_ids, repeat(-1)), np.int32, count)
    known = rows >= 0
    every = stored.weights(chain.surface.event_weights, chain.target.bundle.spec.session_gap_s)
    used = (known & (every > 0)).nonzero()[0][-chain.surface.history_limit :]
    return rows[known], Entries(rows[used], every[used], stored.times[used])


def histories_of(chain: Chain, questions: Sequence[Question], ranked: bool = False) -> Histories:
    """The histories of a batch, items that came after the bundle replaced by those most like them."""
    entries = [question.ranked if ranked else question.asked for question in questions]
    offsets = np.zeros(len(entries) + 1, np.int64)
    np.cumsum([len(one.rows) for one in entries], out=offsets[1:])
    rows = np.concatenate([one.rows for one in entries])
    return Histories(
        rows if ranked else chain.target.fallback.stand_ins(rows),
        np.concatenate([one.weights for one in entries]),
        np.concatenate([one.times for one in entries]),
        offsets,
        np.array([question.as_of for question in questions], np.int64),
    )


def query_of(chain: Chain, questions: Sequence[Question], histories: Histories) -> Query:
    """The batch as one retrieval query."""
    live = chain.target.live
    n = live.n_items
    withdrawn = live.withdrawn
    masked = len(withdrawn) > FEW_WITHDRAWN
    masks: dict[bytes, NDArray[np.bool_]] = {}
    mask_of = np.full(len(questions), -1, np.int32)
    keys: list[bytes] = []
    banned = []
    for place, question in enumerate(questions):
        banned.append(question.banned if masked or not len(withdrawn) else np.concatenate([question.banned, withdrawn]))
        if question.filter is None and question.only is None and not masked:
            continue
        key = question.filter_key if question.only is None else b"%d" % place
        if key not in masks:
            masks[key] = _mask(question, live.available, n)
            keys.append(key)
        mask_of[place] = keys.index(key)
    offsets = np.zeros(len(questions) + 1, np.int64)
    np.cumsum([len(rows) for rows in banned], out=offsets[1:])
    stacked = np.stack(list(masks.values())) if masks else np.empty((0, n), np.bool_)
    return Query(histories, np.concatenate(banned), offsets, stacked, mask_of, chain.mix, chain.surface.candidates)


def _mask(question: Question, available: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    mask = available[:n] if question.filter is None else available[:n] & question.filter[:n]
    if question.only is None:
        return mask
    chosen = np.zeros(n, np.bool_)
    chosen[question.only[question.only < n]] = True
    return mask & chosen
