"""A batch's outcomes: answers from ordered rows, the lower rungs of the ladder, and the answer cache."""

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.chain.parts import Chain
from app.chain.question import NO_ROWS, Question
from app.chain.request import Answer, Reason, Request, Rung, Scored, Seen
from app.models.interactions import Rows
from app.retrieval.merge import fused, shares
from app.retrieval.query import Candidates
from app.rules.rules import effects

LAST_ITEMS = 3  # newest items whose precomputed lists stand in when retrieval is down

Outcome = Answer | Exception

logger = logging.getLogger(__name__)


class Batch:
    """Outcomes of the requests of one call, delivered one by one as they are known."""

    def __init__(
        self, chain: Chain, requests: Sequence[Request], deliver: Callable[[int, Outcome], None] | None
    ) -> None:
        self.chain, self.requests, self._deliver = chain, requests, deliver
        self.outcomes: list[Outcome | None] = [None] * len(requests)
        self.started = chain.clock()
        self.sequence = chain.target.live.sequence
        self.timings: dict[str, float] = {}
        self._keys: dict[int, bytes] = {}

    def settle(self, place: int, outcome: Outcome) -> None:
        """The outcome of one request, once."""
        if self.outcomes[place] is None:
            self.outcomes[place] = outcome
            if self._deliver is not None:
                self._deliver(place, outcome)

    def lap(self, name: str, since: float) -> float:
        """Notes the milliseconds since `since` as a timing; returns now."""
        now = self.chain.clock()
        self.timings[name] = round((now - since) * 1000, 3)
        return now

    # Answers

    def answer(
        self,
        question: Question,
        items: Sequence[Scored],
        rung: Rung | None = None,
        reason: Reason | None = None,
        hit: bool = False,
        seen: Seen | None = None,
    ) -> None:
        """Settles a question with its items, best first."""
        chain, request = self.chain, question.request
        total = round((chain.clock() - (request.arrived or self.started)) * 1000, 3)
        answer = Answer(
            request_id=request.request_id,
            surface=chain.surface_name,
            variant=chain.variant,
            bundle=chain.target.bundle.id,
            degraded=rung,
            degraded_reason=reason,
            items=tuple(items),
            timings_ms={**self.timings, "total": total},
            cache_hit=hit,
            explained=request.explain,
            seen=seen,
        )
        key = self._keys.get(question.place)
        if key is not None and rung is None and not hit and chain.target.live.sequence == self.sequence:
            self._keep(key, items)
        self.settle(question.place, answer)

    def _keep(self, key: bytes, items: Sequence[Scored]) -> None:
        answers, ttl_s = self.chain.answers, self.chain.surface.cache_ttl_s
        assert answers is not None
        try:
            answers.put(key, orjson.dumps([list(item) for item in items]), ttl_s)
        except Exception:  # a full disk takes the cache away, not the answers
            logger.exception("an answer could not be cached")

    def from_candidates(
        self,
        questions: Sequence[Question],
        candidates: Candidates,
        scores: NDArray[np.float32] | None,
        reason: Reason | None = None,
        table: NDArray[np.float32] | None = None,
    ) -> None:
        """Answers by ranker scores (R,), or in retrieval order where there are none; withdrawn rows left out.

        `table`: float32 (R, F), what the ranker saw, where answers of the sample are among them.
        """
        values = fused(candidates.ranks, shares([k for _, k in self.chain.mix])) if scores is None else scores
        rung: Rung | None = None if reason is None else "retrieval_order"
        available = self.chain.target.live.available[candidates.rows]
        complete = bool(available.all())
        for place, question in enumerate(questions):
            start, end = candidates.offsets[place], candidates.offsets[place + 1]
            found = values[start:end]
            order = np.arange(end - start) if scores is None else np.argsort(-found, kind="stable")
            if not complete:
                order = order[available[start:end][order]]
            order = order[: question.k]
            rows = candidates.rows[start:end][order]
            items = self._items(rows, found[order], self._sources(question, rows, candidates.ranks[start + order]))
            if question.request.explain:
                items = self._explained(question, items, rows, candidates, start + order, scores)
            seen = None if table is None else self._seen(question, table, start + order)
            if not complete and len(items) < question.k:
                items += self._popular(question, rows, question.k - len(items))
                seen = None  # nothing of those was seen by the ranker
            self.answer(question, items, rung, reason, seen=seen)

    def _seen(self, question: Question, table: NDArray[np.float32], index: NDArray[np.int64]) -> Seen | None:
        """The rows of the items, where the answer is in the sample."""
        ranker = self.chain.target.bundle.ranker
        if ranker is None or not self.chain.seen_of.takes(question.request.request_id):
            return None
        return Seen(ranker.feature_names, table[index])

    def without_candidates(self, question: Question, reason: Reason) -> None:
        """The two lowest rungs: the bundle's precomputed list where there is one, filled by popularity."""
        rows = self._listed(question)
        items = self._items(rows, 1.0 / (1.0 + np.arange(len(rows))), [("cache",)] * len(rows))
        items = self._plainly_explained(question, items, rows, "cache")
        if len(items) < question.k:
            items += self._popular(question, rows, question.k - len(items))
        self.answer(question, items, "cache" if len(rows) else "popular", reason)

    def _listed(self, question: Question) -> Rows:
        """int32: at most k passing rows of the precomputed lists of the user, or else of his last items."""
        try:
            found = self._lists(question)
        except Exception:  # the last rung is left
            logger.exception("the precomputed lists could not be read")
            return NO_ROWS
        passing = question.passing(self.chain)
        found = found[found < len(passing)]
        return found[passing[found]][: question.k]

    def _lists(self, question: Question) -> Rows:
        lists, request = self.chain.target.lists, question.request
        if lists is None:
            return NO_ROWS
        found: Rows | None = None
        if request.user_id is not None and request.history is None and not len(question.anchors):
            found = lists.rows(f"u:{request.user_id}")
        return self._listed_for_items(question) if found is None else found

    def _listed_for_items(self, question: Question) -> Rows:
        """The lists of the newest items, interleaved, each row once."""
        lists, live = self.chain.target.lists, self.chain.target.live
        assert lists is not None
        newest = question.asked.rows[-LAST_ITEMS:][::-1]
        held = [rows for row in newest if (rows := lists.rows(f"i:{live.item_ids[row]}")) is not None]
        if not held:
            return NO_ROWS
        placed = np.concatenate([np.arange(len(rows)) for rows in held])
        joined = np.concatenate(held)[np.argsort(placed, kind="stable")]
        _, first = np.unique(joined, return_index=True)
        return joined[np.sort(first)]

    def _popular(self, question: Question, shown: Rows, wanted: int) -> list[Scored]:
        passing = question.passing(self.chain)
        passing[shown] = False
        rows = self.chain.target.fallback.by_popularity(passing, wanted)
        scores = 1.0 / (1.0 + len(shown) + np.arange(len(rows)))
        items = self._items(rows, scores, [("popularity",)] * len(rows))
        return self._plainly_explained(question, items, rows, "popularity")

    def _items(self, rows: Rows, scores: NDArray[Any], sources: Sequence[Sequence[str]]) -> list[Scored]:
        ids = self.chain.target.live.item_ids
        return [
            Scored(ids[row], score, None, named)
            for row, score, named in zip(rows.tolist(), scores.tolist(), sources, strict=True)
        ]

    def _sources(self, question: Question, rows: Rows, ranks: NDArray[np.int32]) -> list[Sequence[str]]:
        """Of each row the families that named it; `ranks` (n, S), 0: that source did not."""
        names = [name for name, _ in self.chain.mix]
        sets: dict[int, Sequence[str]] = {}
        found: list[Sequence[str]] = []
        for row, named in zip(rows.tolist(), ((ranks > 0) @ (1 << np.arange(len(names)))).tolist(), strict=True):
            if named not in sets:
                sets[named] = [name for bit, name in enumerate(names) if named >> bit & 1]
            vote = None if named else question.votes.get(row)
            found.append(sets[named] if vote is None else (vote["family"],))
        return found

    # Explanations

    def _explained(
        self,
        question: Question,
        items: list[Scored],
        rows: Rows,
        candidates: Candidates,
        index: NDArray[np.int64],
        scores: NDArray[np.float32] | None,
    ) -> list[Scored]:
        names = [name for name, _ in self.chain.mix]
        out = []
        for item, row, place in zip(items, rows.tolist(), index.tolist(), strict=True):
            sources = [
                {"family": name, "rank": int(rank), "score": float(score)}
                for name, rank, score in zip(
                    names, candidates.ranks[place].tolist(), candidates.scores[place].tolist(), strict=True
                )
                if rank > 0
            ]
            if not sources and row in question.votes:
                sources = [question.votes[row]]
            out.append(self._with(question, item, row, sources, None if scores is None else float(scores[place])))
        return out

    def _plainly_explained(self, question: Question, items: list[Scored], rows: Rows, family: str) -> list[Scored]:
        if not question.request.explain:
            return items
        return [
            self._with(question, item, row, [{"family": family, "rank": place + 1, "score": item.score}], None)
            for place, (item, row) in enumerate(zip(items, rows.tolist(), strict=True))
        ]

    def _with(
        self, question: Question, item: Scored, row: int, sources: list[dict[str, Any]], ranker_score: float | None
    ) -> Scored:
        touched = effects(self.chain.surface.rules, question.consumed.tolist(), row)
        rules = [{"rule": rule, "effect": effect} for rule, effect in touched]
        return item._replace(explain={"sources": sources, "ranker_score": ranker_score, "rules": rules})

    # The answer cache

    def cached(self, question: Question) -> bool:
        """Settles the question from the answer cache if it can; else notes the key to store its answer under."""
        answers = self.chain.answers
        if answers is None or self.chain.surface.cache_ttl_s == 0:
            return False
        try:
            key = self._key(question)
            held = answers.get(key)
        except Exception:
            logger.exception("the answer cache could not be read")
            return False
        if held is None:
            self._keys[question.place] = key
            return False
        live = self.chain.target.live
        items = [Scored(*item) for item in orjson.loads(held)]
        if not all(live.available[live.row_of[item.item_id]] for item in items):
            return False
        self.answer(question, items, hit=True)
        return True

    def _key(self, question: Question) -> bytes:
        """Everything that the answer depends on: a new event, item change, bundle or request makes another key."""
        chain, request = self.chain, question.request
        whole = (
            chain.surface_name,
            chain.variant,
            chain.target.bundle.id,
            self.sequence,
            request.user_id,
            request.session_id,
            question.version,
            question.user,
            question.k,
            request.exclude,
            request.filters,
            request.items,
            request.candidates,
            request.history,
            request.context,
            request.explain,
        )
        packed = orjson.dumps(whole, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        return blake2b(packed, digest_size=16).digest()
