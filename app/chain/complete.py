"""Candidates made whole: items that came after the bundle, the request's own candidates, and fill up to k."""

from collections.abc import Sequence

import numpy as np

from app.chain.parts import Chain
from app.chain.question import Question, histories_of
from app.retrieval.merge import Addition, Found, extend
from app.retrieval.query import Candidates

NO_ROWS = np.empty(0, np.bool_)


def complete(chain: Chain, questions: Sequence[Question], candidates: Candidates) -> Candidates:
    """Adds what retrieval could not know, and fills questions with fewer than k candidates while rows pass."""
    sizes = [k for _, k in chain.mix]
    live, fallback = chain.target.live, chain.target.fallback
    if len(live) > live.n_items and fallback.content:
        candidates = extend(candidates, _newcomers(chain, questions), sizes)
    counts = np.diff(candidates.offsets)
    short = [
        place for place, question in enumerate(questions) if counts[place] < question.k or question.only is not None
    ]
    if not short:
        return candidates
    asked = histories_of(chain, [questions[place] for place in short])
    tastes = [content.tastes(asked) for content in fallback.content]
    additions = []
    for number, place in enumerate(short):
        question = questions[place]
        passing = question.passing(chain)
        passing[candidates.rows[candidates.offsets[place] : candidates.offsets[place + 1]]] = False
        if question.only is not None:
            additions.append(Addition(place, np.flatnonzero(passing).astype(np.int32)))
            continue
        wanted = question.k - int(counts[place])
        for content, mine in zip(fallback.content, tastes, strict=True):
            found = content.most_like(mine[number], passing, wanted)
            passing[found[0]] = False
            wanted -= len(found[0])
            additions.append(Addition(place, found[0]))
            _vote(question, found, content.name)
        popular = fallback.by_popularity(passing, wanted)
        additions.append(Addition(place, popular))
        _vote(question, (popular, np.zeros(len(popular), np.float32)), "popularity")
    return extend(candidates, additions, sizes)


def _newcomers(chain: Chain, questions: Sequence[Question]) -> list[Addition]:
    """Per question the items after the bundle that are most like its history, by each content family."""
    columns = {name: column for column, (name, _) in enumerate(chain.mix)}
    histories = histories_of(chain, questions)
    tastes = [content.tastes(histories) for content in chain.target.fallback.content]
    additions = []
    for place, question in enumerate(questions):
        lists: dict[int, Found] = {}
        passing = question.passing(chain) if any(mine[place].any() for mine in tastes) else NO_ROWS
        for content, mine in zip(chain.target.fallback.content, tastes, strict=True):
            if mine[place].any():
                found = content.newcomers(mine[place], passing)
                lists[columns.get(content.name, -1 - len(lists))] = found
                if content.name not in columns:
                    _vote(question, found, content.name)
        if lists:
            additions.append(Addition.of(place, lists))
    return additions


def _vote(question: Question, found: Found, family: str) -> None:
    for rank, (row, score) in enumerate(zip(found[0].tolist(), found[1].tolist(), strict=True)):
        question.votes[row] = {"family": family, "rank": rank + 1, "score": score}
