"""What became of one answer: impressions, clicks and conversions, whatever order its messages arrive in.

A record gathers everything of one request id: the answer, and per item when it was posted as shown, clicked, converted.
It is a function of the set of its messages: repeats and order do not matter. What it adds to the figures is a function
of the record.
"""

from typing import Any, NamedTuple

import orjson

# Plain JSON. `a`: the answer (time, surface, variant, bundle, sources by item) or None; `r`: by item what was posted
# (time, surface, variant, bundle) or None, and the times of clicks and of conversions. Microseconds.
Record = dict[str, Any]
Counts = tuple[int, int, int]  # impressions, clicks, conversions
POSTED, CLICKED, CONVERTED = 0, 1, 2
_SHOWN: Counts = (1, 0, 0)
_NO_SOURCE: tuple[str | None, ...] = (None,)
_MOST_TIMES = 32  # clicks of one item of one answer that are told apart


class Place(NamedTuple):
    """Where figures count: when and by whom an item was shown; `source` only where `by_source`."""

    time: int
    surface: str
    variant: str | None
    bundle: str | None
    by_source: bool = False
    source: str | None = None


def new_record() -> Record:
    """Nothing is known yet."""
    return {"a": None, "r": {}}


def note_answer(record: Record, answer: list[Any]) -> None:
    """Adds the answer; of two that differ the same one stays, whichever came first."""
    held = record["a"]
    if held is None or orjson.dumps(answer) < orjson.dumps(held):
        record["a"] = answer


def note_posted(record: Record, item_id: str, posted: list[Any]) -> None:
    """Adds that an item was shown, as the client says: [time, surface, variant, bundle]."""
    parts = record["r"].setdefault(item_id, [None, [], []])
    held = parts[POSTED]
    if held is None or (posted[0], orjson.dumps(posted)) < (held[0], orjson.dumps(held)):
        parts[POSTED] = posted


def note_reaction(record: Record, item_id: str, kind: int, time: int) -> None:
    """Adds a click or a conversion (`kind`)."""
    times = record["r"].setdefault(item_id, [None, [], []])[kind]
    if time not in times:
        times.append(time)
        times.sort()
        del times[_MOST_TIMES:]


def newest(record: Record) -> int:
    """The highest time in the record."""
    times: list[int] = [record["a"][0]] if record["a"] is not None else []
    for posted, clicked, converted in record["r"].values():
        times += [] if posted is None else [posted[0]]
        times += [*clicked, *converted]
    return max(times)


def contributions(record: Record, posted_surfaces: frozenset[str], window_us: int) -> dict[Place, Counts]:
    """What the record adds to the figures.

    Args:
        record: of one request id.
        posted_surfaces: surfaces on which an item counts as shown once the client has said so; elsewhere every
            answered item counts.
        window_us: how far a reaction's time may lie from the impression's.
    """
    tallies: dict[Place, _Tally] = {}
    answer, reactions = record["a"], record["r"]
    if answer is not None and answer[1] not in posted_surfaces:
        time, surface, variant, bundle, items = answer
        tally = tallies[Place(time, surface, variant, bundle)] = {}
        for item_id, sources in items.items():
            _add(tally, sources, _counts(time, reactions.get(item_id), window_us))
        return _places(tallies)
    for item_id, parts in reactions.items():
        if (posted := parts[POSTED]) is None:
            continue
        time, surface, variant, bundle = posted
        sources = None
        if answer is not None and abs(answer[0] - time) <= window_us:
            _, surface, variant, bundle, items = answer
            sources = items.get(item_id)
        if surface in posted_surfaces:
            tally = tallies.setdefault(Place(time, surface, variant, bundle), {})
            _add(tally, sources, _counts(time, parts, window_us))
    return _places(tallies)


def left_out(record: Record, posted_surfaces: frozenset[str], window_us: int) -> int:
    """How many reactions (those of one kind to one item are one) `contributions` has not: the answer never came or is
    without the item, the item was never posted as shown, or they lie further from it than `window_us`.
    """
    answer, count = record["a"], 0
    for item_id, parts in record["r"].items():
        time = _shown_at(item_id, parts[POSTED], answer, posted_surfaces, window_us)
        if time is None:
            count += parts[POSTED] is not None and answer is None
        counted = (0, 0, 0) if time is None else _counts(time, parts, window_us)
        count += sum(bool(parts[kind]) and not counted[kind] for kind in (CLICKED, CONVERTED))
    return count


def _shown_at(
    item_id: str, posted: list[Any] | None, answer: list[Any] | None, posted_surfaces: frozenset[str], window_us: int
) -> int | None:
    """When the impression of an item was that `contributions` counts; None: there is none."""
    if answer is not None and answer[1] not in posted_surfaces:
        return int(answer[0]) if item_id in answer[4] else None
    if posted is None:
        return None
    near = answer is not None and abs(answer[0] - posted[0]) <= window_us
    surface = answer[1] if answer is not None and near else posted[1]
    return int(posted[0]) if surface in posted_surfaces else None


_Tally = dict[tuple[str | None, ...], list[int]]  # (): all; (source,): what a source named


def _counts(time: int, parts: list[Any] | None, window_us: int) -> Counts:
    if parts is None:
        return _SHOWN
    clicked, converted = (any(abs(one - time) <= window_us for one in parts[kind]) for kind in (CLICKED, CONVERTED))
    return 1, int(clicked), int(converted)


def _add(tally: _Tally, sources: list[str] | None, counts: Counts) -> None:
    """Once for all, and once for each source that named the item (`None`: no source is known)."""
    for who in ((), *((source,) for source in sources or _NO_SOURCE)):
        held = tally.get(who)
        if held is None:
            tally[who] = list(counts)
        else:
            held[0] += counts[0]
            held[1] += counts[1]
            held[2] += counts[2]


def _places(tallies: dict[Place, _Tally]) -> dict[Place, Counts]:
    return {
        place._replace(by_source=True, source=who[0]) if who else place: (counts[0], counts[1], counts[2])
        for place, tally in tallies.items()
        for who, counts in tally.items()
    }
