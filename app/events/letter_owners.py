"""Whom a message that cannot be read is about, as far as it can be told: for who was erased, dead letters count too."""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from app.erasure.erased import Boundary, Erased, ErasedOn, Kind
from app.erasure.places import Subject
from app.events.schema import parse_time

# The ids of a message that is no JSON, as they would stand in one.
_NAMED = re.compile(rb'"(user|session)_id"\s*:\s*"((?:[^"\\]|\\.)*)')
_TELLING = 16  # bytes
_FIELDS: tuple[tuple[str, Kind], ...] = (("user_id", "user"), ("session_id", "session"))

Letter = Mapping[str, Any]


def owners(key: bytes, raw: bytes) -> Iterator[tuple[Kind, str]]:
    """Users and sessions that a message names: by its key, which may be either, and by its fields, of whatever type.

    Where a user is named in a readable message, its session says nothing: it is the user's.
    """
    if key:
        text = key.decode(errors="replace")
        yield from (("user", text), ("session", text))
    try:
        message = orjson.loads(raw)
    except orjson.JSONDecodeError:
        yield from _torn_owners(raw)
        return
    if not isinstance(message, dict):
        return
    for field, kind in _FIELDS:
        if message.get(field) is not None:
            yield kind, str(message[field])
            return


def _torn_owners(raw: bytes) -> Iterator[tuple[Kind, str]]:
    for word, found in _NAMED.findall(raw):
        try:
            text = str(orjson.loads(b'"' + found + b'"'))
        except orjson.JSONDecodeError:
            text = found.decode(errors="replace")
        yield ("user" if word == b"user" else "session"), text


def of_others(rejected: pa.Table, erased: ErasedOn) -> pa.Table:
    """Refused messages (`columns.REJECTED`) of one topic without those that are about somebody who was erased."""
    if not len(rejected) or erased.passed(_firsts(rejected)):
        return rejected
    stays = [not _is_erased(row, erased) for row in rejected.to_pylist()]
    return rejected if all(stays) else rejected.filter(pa.array(stays))


def _firsts(rejected: pa.Table) -> dict[int, int]:
    partitions, offsets = rejected["partition"].to_numpy(), rejected["offset"].to_numpy()
    return {int(part): int(offsets[partitions == part].min()) for part in np.unique(partitions)}


def _is_erased(row: Letter, erased: ErasedOn) -> bool:
    place = (row["partition"], row["offset"], row["record_time"])
    if not erased.may(*place):
        return False
    return any(erased.message(kind, name, *place) for kind, name in owners(row["key"] or b"", row["raw"] or b""))


def is_erased(letter: Letter, erased: Erased) -> bool:
    """Whether a dead letter (a message of `events.dlq`) is about somebody who was erased, and from before."""
    if not len(erased):
        return False
    names = _owners_of(letter)
    return any(_came_before(letter, one) for kind, name in names for one in erased.boundaries(kind, name))


def is_of(letter: Letter, subject: Subject) -> bool:
    """Whether a dead letter is the subject's, from before the erasure.

    One that is no JSON and quotes an id that is too long to be there by chance is his too.
    """
    if not _came_before(letter, subject.boundary):
        return False
    found = set(_owners_of(letter))
    wanted = {("user", subject.user_id), *(("session", name) for name in subject.sessions)}
    if not found.isdisjoint(wanted):
        return True
    raw = base64.b64decode(letter["raw"])
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return any(orjson.dumps(name) in raw for _, name in wanted if len(name.encode()) >= _TELLING)
    return False


def _owners_of(letter: Letter) -> Iterator[tuple[Kind, str]]:
    return owners(base64.b64decode(letter["key"]), base64.b64decode(letter["raw"]))


def _came_before(letter: Letter, boundary: Boundary) -> bool:
    """By offset in the same topic; or by arrival, since it may have been made anew."""
    end = boundary.ends.get(letter["topic"])
    same = end is not None and letter.get("topic_id") in (None, "", end.topic_id)
    if end is not None and (same or not end.topic_id) and letter["offset"] < end.next.get(letter["partition"], 0):
        return True
    return parse_time(letter["time"]) // 1000 < boundary.requested_ms
