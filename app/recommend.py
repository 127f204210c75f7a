"""The chain: requests in, answers out, for a batch of one or of many.

    state -> retrieve -> newcomers and fill -> features -> rank -> answer

A stage that is slow or down takes its questions down the ladder: ranked, retrieval order, cache, popular.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from app.chain.complete import complete
from app.chain.outcomes import Batch, Outcome
from app.chain.parts import Chain, LiveBundle, ServableBundle
from app.chain.question import Question, histories_of, history_key, query_of, question_of
from app.chain.request import Answer, Reason, Request, Scored, similar
from app.chain.stages import LocalStages, Stages, ask
from app.degrade import Breakers, StageOverloaded, StageStarting, cause_of
from app.errors import MantaError
from app.features.table import FeatureContext, features
from app.retrieval.merge import take
from app.retrieval.query import Candidates
from app.state.memory import MemoryState
from app.state.reader import EMPTY_HISTORY, Kind, StateReader, UserHistory
from app.surfaces import SurfaceSettings

__all__ = [
    "Answer",
    "Breakers",
    "Chain",
    "LiveBundle",
    "LocalStages",
    "Outcome",
    "Request",
    "Scored",
    "StageOverloaded",
    "StageStarting",
    "Stages",
    "in_process",
    "probes",
    "recommend",
    "recommend_now",
    "similar",
    "warm_up",
]

logger = logging.getLogger(__name__)
T = TypeVar("T")

SLOW_S = 0.02  # a stage that was given less than this and was late has not failed


async def recommend(
    chain: Chain,
    requests: Sequence[Request],
    deliver: Callable[[int, Outcome], None] | None = None,
    *,
    since: float | None = None,
) -> list[Outcome]:
    """Answers a batch of requests to one surface.

    Args:
        chain: surface, bundle, state and stages.
        requests: any number; the same request gets the same items alone or in a batch.
        deliver: called with a request's place and outcome as soon as it is known: one with a short deadline need not
            wait for the rest of its batch.
        since: second of the chain's clock from which the time for the state counts; None: now.

    Returns:
        One outcome a request, in order: an answer, or the error that it alone met (`RequestInvalid`: 422,
        `NotFound`: 404, anything else: 500). Stage failures are no errors but degraded answers.
    """
    batch = Batch(chain, requests, deliver)
    questions = _begin(batch, batch.started if since is None else since)
    if questions:
        questions, candidates = await _retrieve(batch, questions)
        if questions and candidates is not None:
            await _rank(batch, questions, complete(chain, questions, candidates))
    return [outcome for outcome in batch.outcomes if outcome is not None]


def recommend_now(chain: Chain, requests: Sequence[Request]) -> list[Outcome]:
    """`recommend` without an event loop, where all stages are in this process."""
    running = recommend(chain, requests)
    try:
        running.send(None)
    except StopIteration as done:
        outcomes: list[Outcome] = done.value
        return outcomes
    running.close()
    raise RuntimeError("recommend_now: found stages that wait, wanted in-process stages; await recommend() instead")


def in_process(
    bundle: ServableBundle, surface: SurfaceSettings | None = None, state: StateReader | None = None
) -> Chain:
    """A chain that needs no Ray, no Kafka and no network: `recommend_now(in_process(load_bundle(path)), requests)`.

    Args:
        surface: None: the defaults.
        state: None: an empty one in memory; requests then bring their `history`.
    """
    stages = LocalStages({bundle.id: bundle})
    return Chain("in-process", surface or SurfaceSettings(), LiveBundle(bundle), state or MemoryState(), stages)


def probes(bundle: ServableBundle, k: int, timeout_ms: int) -> list[Request]:
    """What any bundle can be asked: a visitor with a history, and one without."""
    known = [bundle.catalogue.item_ids[row] for row in bundle.popular[:3].tolist()]
    return [Request(history=known, k=k, timeout_ms=timeout_ms), Request(k=k, timeout_ms=timeout_ms)]


def warm_up(bundle: ServableBundle, target: LiveBundle | None = None) -> None:
    """Asks a bundle that was just loaded: what libraries prepare on their first use (100 ms) no client waits for.

    `target`: where its live items stand already; None: they are made for this.
    """
    stages = LocalStages({bundle.id: bundle})
    try:
        chain = Chain("warm-up", SurfaceSettings(), target or LiveBundle(bundle), MemoryState(), stages)
        recommend_now(chain, probes(bundle, 10, 10_000))
    except Exception:  # what is wrong with it, the first request will say
        logger.exception("bundle %s could not be warmed up", bundle.id)


def _begin(batch: Batch, since: float) -> list[Question]:
    """Reads the state and settles what needs no stage: wrong requests, cache hits, unreadable histories."""
    chain = batch.chain
    stored, failed = _stored(batch)
    users = _user_columns(chain, batch.requests)
    questions = []
    for place, request in enumerate(batch.requests):
        try:
            question = question_of(chain, place, request, stored[place], batch.started)
        except MantaError as error:
            batch.settle(place, error)
            continue
        except Exception as error:
            logger.exception("a request could not be prepared")
            batch.settle(place, error)
            continue
        question.user = users[place]
        if place in failed:
            batch.without_candidates(question, Reason("state", cause_of(failed[place])))
        elif not batch.cached(question):
            questions.append(question)
    batch.lap("state", since)
    return questions


def _stored(batch: Batch) -> tuple[list[UserHistory], dict[int, Exception]]:
    """The stored history of each request (empty where it brings its own); place → why one is not to be had."""
    histories = [EMPTY_HISTORY] * len(batch.requests)
    wanted = [
        (place, key)
        for place, request in enumerate(batch.requests)
        if request.history is None and (key := history_key(request)) is not None
    ]
    failed: dict[int, Exception] = {}
    if not wanted:
        return histories, failed
    state = batch.chain.state
    try:
        found: Sequence[UserHistory | Exception] = state.histories([key for _, key in wanted])
    except Exception as error:
        if batch.chain.breakers.is_news():  # while a part of it is down, every batch meets that
            logger.error("the state could not be read: %s", error, exc_info=not isinstance(error, MantaError))
        found = [_alone(state, key) for _, key in wanted]
    for (place, _), history in zip(wanted, found, strict=True):
        if isinstance(history, Exception):
            failed[place] = history
        else:
            histories[place] = history
    return histories, failed


def _alone(state: StateReader, key: tuple[Kind, str]) -> UserHistory | Exception:
    """One history, where they could not all be read: a part of the state may be down. Why, where this one cannot."""
    try:
        return state.histories([key])[0]
    except Exception as error:
        return error


def _user_columns(chain: Chain, requests: Sequence[Request]) -> list[dict[str, Any] | None]:
    """Columns of the requests' users, where the bundle has features of them."""
    columns: list[dict[str, Any] | None] = [None] * len(requests)
    known = [place for place, request in enumerate(requests) if request.user_id is not None]
    if not known or not chain.target.bundle.spec.user_numbers:
        return columns
    try:
        found = chain.state.user_columns([str(requests[place].user_id) for place in known])
    except Exception:
        logger.exception("user columns could not be read")
        return columns
    for place, one in zip(known, found, strict=True):
        columns[place] = one
    return columns


async def _retrieve(batch: Batch, questions: list[Question]) -> tuple[list[Question], Candidates | None]:
    """Candidates of the questions that are still in time; the others are answered from lower rungs."""
    chain = batch.chain
    since = chain.clock()
    query = query_of(chain, questions, histories_of(chain, questions))
    bundle_id = chain.target.bundle.id
    candidates, reason, late = await _within(
        batch, "retrieve", questions, lambda: chain.stages.retrieve(bundle_id, query), batch.without_candidates
    )
    batch.lap("retrieve", since)
    if candidates is None:
        for place, question in enumerate(questions):
            if place not in late:
                batch.without_candidates(question, reason)
        return [], None
    if late:
        left = [place for place in range(len(questions)) if place not in late]
        return [questions[place] for place in left], take(candidates, left)
    return questions, candidates


async def _rank(batch: Batch, questions: list[Question], candidates: Candidates) -> None:
    """Answers in the ranker's order; questions that it leaves waiting too long, in retrieval order."""
    chain = batch.chain
    bundle = chain.target.bundle
    if bundle.ranker is None or not chain.surface.ranked:
        await _last_look(chain, questions)
        batch.from_candidates(questions, candidates, None)
        return
    since = chain.clock()
    place_of = {question.place: place for place, question in enumerate(questions)}
    table: np.ndarray[Any, np.dtype[np.float32]] | None = None

    def unranked(question: Question, reason: Reason) -> None:
        batch.from_candidates([question], take(candidates, [place_of[question.place]]), None, reason)

    def score() -> Awaitable[np.ndarray[Any, np.dtype[np.float32]]]:
        nonlocal table
        table = features(bundle.spec, _context(chain, questions, candidates))
        return chain.stages.score(bundle.id, table, chain.surface.objectives)

    scores, reason, late = await _within(batch, "rank", questions, score, unranked)
    batch.lap("rank", since)
    if late:
        left = [place for place in range(len(questions)) if place not in late]
        kept = np.isin(candidates.owner, left)
        scores = None if scores is None else scores[kept]
        table = None if table is None else table[kept]
        questions, candidates = [questions[place] for place in left], take(candidates, left)
    if not questions:
        return
    await _last_look(chain, questions)
    if scores is None:
        batch.from_candidates(questions, candidates, None, reason)
    else:
        batch.from_candidates(questions, candidates, scores, table=table if chain.seen_of else None)


def _context(chain: Chain, questions: Sequence[Question], candidates: Candidates) -> FeatureContext:
    target = chain.target
    return FeatureContext(
        target.bundle.spec,
        histories_of(chain, questions, ranked=True),
        candidates,
        [name for name, _ in chain.mix],
        target.item_features,
        target.bundle.statistics,
        [question.user for question in questions],
        [question.request.context for question in questions],
    )


async def _within(
    batch: Batch,
    stage: Literal["retrieve", "rank"],
    questions: Sequence[Question],
    call: Callable[[], Awaitable[T]],
    fall: Callable[[Question, Reason], None],
) -> tuple[T | None, Reason, set[int]]:
    """Asks a stage under its breaker and the questions' deadlines.

    Returns:
        (what it said, None if nothing; why not; the places of the questions that were late and fell already).
    """
    chain, breaker = batch.chain, batch.chain.breakers.of(stage)
    timeout = Reason(stage, "timeout")
    late: set[int] = set()

    def drop(place: int) -> None:
        late.add(place)
        fall(questions[place], timeout)

    since = chain.clock()
    if all(question.until <= since for question in questions):
        return None, timeout, late
    if not breaker.allows():
        return None, Reason(stage, "circuit_open"), late
    try:
        said = await ask(call, chain.stages.immediate, [question.until for question in questions], drop, chain.clock)
    except Exception as error:
        cause = cause_of(error)
        if cause != "timeout" or chain.clock() - since >= SLOW_S:
            breaker.failed()
        if cause == "error":
            logger.exception("stage %s failed", stage)
        return None, Reason(stage, cause), late
    breaker.succeeded()
    return said, timeout, late


async def _last_look(chain: Chain, questions: Sequence[Question]) -> None:
    """Whatever was withdrawn meanwhile must not be in the answers, as far as their deadlines leave time to see it."""
    if chain.refresh is None or chain.state.item_sequence() <= chain.target.live.sequence:
        return
    left = min(question.until for question in questions) - chain.clock()
    try:
        await asyncio.wait_for(chain.refresh(), max(left, 0.0))
    except (MantaError, TimeoutError) as error:  # the next batch says so
        logger.warning("answering without the newest item changes: %s", error)
