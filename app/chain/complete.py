"""Candidates made whole: items that came after the bundle, the request's own candidates, and fill up to k."""

from collections.abc import Sequence

import numpy as np

from app.chain.parts import Chain
from app.chain.question import Question, histories_of
from app.models.interactions import Rows
from app.retrieval.merge import Addition, Found, extend
from app.retrieval.query import Candidates


def complete(chain: Chain, questions: Sequence[Question], candidates: Candidates) -> Candidates:
    """Adds what retrieval could not know, and fills questions with fewer than k candidates while rows pass."""
    sizes = [k for _, k in chain.mix]
    live, fallback = chain.target.live, chain.target.fallback
    if len(live) > live.n_items and fallback.family:
        candidates = extend(candidates, _newcomers(chain, questions), sizes)
    counts = np.diff(candidates.offsets)
    short = [
        place for place, question in enumerate(questions) if counts[place] < question.k or question.only is not None
    ]
    if not short:
        return candidates
    tastes = fallback.tastes(histories_of(chain, [questions[place] for place in short]))
    additions = []
    for place, taste in zip(short, tastes, strict=True):
        question = questions[place]
        passing = question.passing(chain)
        passing[candidates.rows[candidates.offsets[place] : candidates.offsets[place + 1]]] = False
        if question.only is not None:
            additions.append(_unscored(place, np.flatnonzero(passing).astype(np.int32)))
            continue
        wanted = question.k - int(counts[place])
        found = fallback.by_content(taste, passing, wanted)
        passing[found[0]] = False
        popular = fallback.by_popularity(passing, wanted - len(found[0]))
        additions += [_unscored(place, found[0]), _unscored(place, popular)]
        _vote(question, found, fallback.family)
        _vote(question, (popular, np.zeros(len(popular), np.float32)), "popularity")
    return extend(candidates, additions, sizes)


def _newcomers(chain: Chain, questions: Sequence[Question]) -> list[Addition]:
    """Per question the items after the bundle that are most like its history."""
    fallback = chain.target.fallback
    names = [name for name, _ in chain.mix]
    column = names.index(fallback.family) if fallback.family in names else -1
    additions = []
    for place, taste in enumerate(fallback.tastes(histories_of(chain, questions))):
        if taste.any():
            found = fallback.newcomers(taste, questions[place].passing(chain))
            additions.append(Addition(place, *found, column=column))
            if column < 0:
                _vote(questions[place], found, fallback.family)
    return additions


def _unscored(place: int, rows: Rows) -> Addition:
    return Addition(place, rows, np.zeros(len(rows), np.float32))


def _vote(question: Question, found: Found, family: str) -> None:
    for rank, (row, score) in enumerate(zip(found[0].tolist(), found[1].tolist(), strict=True)):
        question.votes[row] = {"family": family, "rank": rank + 1, "score": score}
