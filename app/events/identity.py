"""What counts once: (user or session, event id), within a horizon of arrival; the lowest offset wins."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.events.schema import EVENTS

Hashes = NDArray[np.uint64]

_PRIME_A, _PRIME_B = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_SEED_A, _SEED_B = np.uint64(0x27D4EB2F165667C5), np.uint64(0x165667B19E3779F9)
_SHIFT_A, _SHIFT_B = np.uint64(32), np.uint64(29)
_SHARES = 8
_SHARE_BITS = np.uint64(61)


def identity_hashes(user_id: pa.ChunkedArray, session_id: pa.ChunkedArray, event_id: pa.ChunkedArray) -> Hashes:
    """uint64 (n, 2): 128 bits of each identity. Columns as the lake has them, `event_id` without nulls."""
    owner = _text_hashes(pc.coalesce(user_id, session_id))
    event = _text_hashes(event_id)
    with np.errstate(over="ignore"):
        first = _mix(owner[:, 0] * _PRIME_A ^ event[:, 0], _PRIME_B, _SHIFT_A)
        second = _mix(owner[:, 1] * _PRIME_B ^ event[:, 1], _PRIME_A, _SHIFT_B)
    return np.stack([first, second], axis=1)


def named_by_place(events: pa.Table) -> NDArray[np.bool_]:
    """bool (n,): events that came without an id and are named `topic/partition/offset`.

    No earlier event is the same as one of them, not even the one at its place in a topic that was there before.
    """
    names = events["event_id"]
    likely: NDArray[np.bool_] = pc.fill_null(pc.starts_with(names, f"{EVENTS}/"), False).to_numpy()
    if not likely.any():
        return likely
    some = events.select(["event_id", "partition", "offset"]).filter(pa.array(likely))
    texts = [pc.cast(some[column], pa.string()) for column in ("partition", "offset")]
    places = pc.binary_join_element_wise(EVENTS, *texts, "/")
    found = np.zeros(len(events), bool)
    found[likely] = pc.equal(pc.cast(some["event_id"], pa.string()), places).to_numpy()
    return found


def _text_hashes(column: pa.ChunkedArray) -> Hashes:
    """uint64 (n, 2) of each text, eight bytes a step over all rows at once."""
    texts = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.array([], pa.string())
    count = len(texts)
    _, offset_buffer, data_buffer = texts.cast(pa.string()).buffers()
    if not count or offset_buffer is None:
        return np.empty((0, 2), np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + count + 1].astype(np.int64)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    padded = np.concatenate([data[offsets[0] : offsets[-1]], np.zeros(8, np.uint8)])
    words: Hashes = np.lib.stride_tricks.as_strided(padded.view(np.uint8)[:8].view(np.uint64), (len(padded) - 7,), (1,))
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    with np.errstate(over="ignore"):
        # Mixed before any byte is: else a NUL at the end could stand for another length
        one = _mix(lengths.astype(np.uint64) ^ _SEED_A, _PRIME_A, _SHIFT_A)
        two = _mix(lengths.astype(np.uint64) ^ _SEED_B, _PRIME_B, _SHIFT_B)
        least, most = int(lengths.min()), int(lengths.max())
        for step in range(0, most, 8):
            if least >= step + 8:  # every text has the whole word; of texts of one length they lie evenly
                word = words[step::most][:count] if least == most else words[starts + step]
                one, two = _mix(one ^ word, _PRIME_A, _SHIFT_A), _mix(two ^ word, _PRIME_B, _SHIFT_B)
                continue
            rows = np.flatnonzero(lengths > step)
            word = words[starts[rows] + step] & _tail_mask(lengths[rows] - step)
            one[rows] = _mix(one[rows] ^ word, _PRIME_A, _SHIFT_A)
            two[rows] = _mix(two[rows] ^ word, _PRIME_B, _SHIFT_B)
    return np.stack([one, two], axis=1)


def _tail_mask(left: NDArray[np.int64]) -> Hashes:
    """Keeps the bytes that belong to the text where fewer than eight are left."""
    bits = (8 * (8 - np.minimum(left, 8))).astype(np.uint64)
    mask: Hashes = np.uint64(0xFFFFFFFFFFFFFFFF) >> bits
    return mask


def _mix(value: Hashes, prime: np.uint64, shift: np.uint64) -> Hashes:
    mixed: Hashes = value * prime
    mixed ^= mixed >> shift
    mixed *= _PRIME_B
    mixed ^= mixed >> np.uint64(31)
    return mixed


class Run(NamedTuple):
    """Identities in the order of their first half: uint64 (n,), uint64 (n,), arrival in milliseconds int64 (n,)."""

    first: NDArray[np.uint64]
    second: NDArray[np.uint64]
    times: NDArray[np.int64]

    def part(self, start: int, end: int) -> "Run":
        """Some of them; nothing is copied."""
        return Run(self.first[start:end], self.second[start:end], self.times[start:end])

    def copied(self) -> "Run":
        """The same, of which nothing else holds more."""
        return Run(self.first.copy(), self.second.copy(), self.times.copy())

    def since(self, least_ms: int) -> "Run":
        """Those that arrived then or later."""
        late = self.times >= least_ms
        return Run(self.first[late], self.second[late], self.times[late])


def sorted_run(first: NDArray[np.uint64], second: NDArray[np.uint64], times: NDArray[np.int64]) -> Run:
    """A run of identities that come in any order."""
    order = np.argsort(first)
    return Run(first[order], second[order], times[order])


def merged(one: Run, other: Run) -> Run:
    """One run of two."""
    first = np.concatenate([one.first, other.first])
    return sorted_run(first, np.concatenate([one.second, other.second]), np.concatenate([one.times, other.times]))


def matches(asked: Run, run: Run, horizon_ms: int) -> NDArray[np.bool_]:
    """bool (n,): which of the asked ones stand in a run, arrived less than the horizon before or after."""
    found = np.zeros(len(asked.first), bool)
    place = np.searchsorted(run.first, asked.first, side="left")
    rows = np.flatnonzero(place < len(run.first))
    rows = rows[run.first[place[rows]] == asked.first[rows]]
    for row in rows.tolist():  # few: only those whose first 64 bits stand in the run
        at = int(place[row])
        while at < len(run.first) and run.first[at] == asked.first[row]:
            near = abs(int(run.times[at]) - int(asked.times[row])) < horizon_ms
            if near and run.second[at] == asked.second[row]:
                found[row] = True
                break
            at += 1
    return found


def _shares(ordered: NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """(share, start, end) of sorted hashes, by the first bits; shares without a row are left out."""
    edges = np.arange(1, _SHARES, dtype=np.uint64) << _SHARE_BITS
    ends = [*np.searchsorted(ordered, edges).tolist(), len(ordered)]
    for share, (start, end) in enumerate(pairwise([0, *ends])):
        if end > start:
            yield share, start, end


class SeenEvents:
    """Identities of accepted events with their arrival, in sorted runs: 24 bytes an event.

    By the first bits of the hash they are in shares of their own: what is sorted anew at once is never all of them.

    Args:
        horizon_ms: `events.dedup_days` in milliseconds.
    """

    def __init__(self, horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self._runs: list[list[Run]] = [[] for _ in range(_SHARES)]

    def __len__(self) -> int:
        return sum(len(run.times) for runs in self._runs for run in runs)

    def add(self, hashes: Hashes, times: NDArray[np.int64]) -> None:
        """Remembers accepted events: uint64 (n, 2) and arrival in milliseconds (n,)."""
        if not len(times):
            return
        whole = sorted_run(hashes[:, 0], hashes[:, 1], times)
        for share, start, end in _shares(whole.first):
            runs, run = self._runs[share], whole.part(start, end).copied()
            # Each run is at least twice the next: few runs, and a small addition never sorts everything again
            while runs and len(runs[-1].times) < 2 * len(run.times):
                run = merged(runs.pop(), run)
            runs.append(run)

    def forget_before(self, time_ms: int) -> None:
        """Drops what can match no event that arrived at `time_ms` or later, where that is a tenth of a run or more."""
        least = time_ms - self.horizon_ms
        for share, runs in enumerate(self._runs):
            kept = []
            for run in runs:
                some = np.count_nonzero(run.times >= least)
                if some > 0.9 * len(run.times):
                    kept.append(run)
                elif some:
                    kept.append(run.since(least))
            self._runs[share] = kept

    def duplicates(
        self, hashes: Hashes, times: NDArray[np.int64], never: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """Which of these events count already, among the remembered ones or among themselves (the first stays).

        Args:
            hashes: uint64 (n, 2), in the order in which the first one wins.
            times: int64 (n,), arrival in milliseconds.
            never: bool (n,), those that count whatever was before (`named_by_place`).
        """
        order = np.argsort(hashes[:, 0])
        asked = Run(hashes[order, 0], hashes[order, 1], times[order])
        known = np.zeros(len(order), bool)
        for share, start, end in _shares(asked.first):
            for run in self._runs[share]:
                known[start:end] |= matches(asked.part(start, end), run, self.horizon_ms)
        doubled = np.zeros(len(order), bool)
        doubled[order] = known
        if never is not None:
            doubled &= ~never
        twins = np.zeros(len(order), bool)
        same = (asked.first[1:] == asked.first[:-1]) & (asked.second[1:] == asked.second[:-1])
        twins[1:] |= same
        twins[:-1] |= same
        if twins.any():
            self._strike_twins(order[twins], hashes, times, doubled, never)
        return doubled

    def _strike_twins(
        self,
        rows: NDArray[np.int64],
        hashes: Hashes,
        times: NDArray[np.int64],
        doubled: NDArray[np.bool_],
        never: NDArray[np.bool_] | None,
    ) -> None:
        """Among events of the same identity each accepted one takes out the later ones within the horizon."""
        accepted: dict[tuple[int, int], list[int]] = {}
        for row in np.sort(rows).tolist():
            if doubled[row]:
                continue
            arrivals = accepted.setdefault((int(hashes[row, 0]), int(hashes[row, 1])), [])
            arrived = int(times[row])
            counts = never is not None and bool(never[row])
            if not counts and any(abs(arrived - other) < self.horizon_ms for other in arrivals):
                doubled[row] = True
            else:
                arrivals.append(arrived)
