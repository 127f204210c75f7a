"""Identities of accepted events in sorted files: however many they are, they take little memory.

Files are mapped, looked through and merged a slice at a time, and their pages given back. What lies here is never the
truth: a note beside it says of which state of the lake it is, and of any other state it is made anew.
"""

import json
import math
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from app.events.identity import Hashes, Run, matches, merged, sorted_run
from app.own_folders import hold, remove_abandoned

_VERSION = 1
_NOTE = "note.json"
_SLICE_ROWS = 200_000  # of a file, looked at or merged at a time: 5 MB
_ROW_BYTES = 24


@dataclass(frozen=True, slots=True)
class _File:
    """A run in a file: its three columns one behind the other."""

    path: Path
    rows: int
    oldest: int  # arrival
    newest: int
    pages: mmap.mmap = field(repr=False)

    @property
    def run(self) -> Run:
        columns = [np.frombuffer(self.pages, np.uint64, self.rows, place * self.rows * 8) for place in range(3)]
        return Run(columns[0], columns[1], columns[2].view(np.int64))

    def let_go(self) -> None:
        """The pages that were looked at stay in the system's cache, not in this process."""
        self.pages.madvise(mmap.MADV_DONTNEED)


class IdentityFiles:
    """The identities that one state of the lake holds, with their arrival.

    Of several processes on one folder the first has it; each of the others works in a folder of its own, which goes
    with it.

    Args:
        folder: made if missing; None: one that goes with this object.

    Attributes:
        stand: of which state of the lake these are; None: of none.
        from_ms: arrivals from here on are here; None: nothing is.
    """

    def __init__(self, folder: Path | None) -> None:
        self.stand: dict[str, Any] | None = None
        self.from_ms: int | None = None
        self._files: list[_File] = []  # each has at least twice the rows of the next
        self._noted: set[Path] = set()  # stand in the note: stay until the next one
        self._passing = False  # the folder goes with this object
        self._mark: IO[bytes] | None = None
        self._folder = self._taken(folder)
        self._load()

    def __len__(self) -> int:
        return sum(file.rows for file in self._files)

    def close(self) -> None:
        """Lets another process have the folder."""
        self._files = []
        if self._mark is not None:
            self._mark.close()
        if self._passing:
            shutil.rmtree(self._folder, ignore_errors=True)

    def holds(self, hashes: Hashes, times: NDArray[np.int64], horizon_ms: int) -> NDArray[np.bool_]:
        """bool (n,): which of these, uint64 (n, 2) with their arrival, stand here within the horizon."""
        order = np.argsort(hashes[:, 0])
        asked = Run(hashes[order, 0], hashes[order, 1], times[order])
        known = np.zeros(len(order), bool)
        first, last = int(times.min(initial=0)) - horizon_ms, int(times.max(initial=0)) + horizon_ms
        for file in self._files:
            if file.newest <= first or file.oldest >= last:
                continue
            parts = math.ceil(file.rows / _SLICE_ROWS)
            for (start, end), (low, high) in zip(_cuts(asked, parts), _cuts(file.run, parts), strict=True):
                if end > start and high > low:
                    known[start:end] |= matches(asked.part(start, end), file.run.part(low, high), horizon_ms)
                    file.let_go()
        found = np.zeros(len(order), bool)
        found[order] = known
        return found

    def add(self, hashes: Hashes, times: NDArray[np.int64]) -> None:
        """Takes more in; they stay once they are `save`d."""
        if not len(times):
            return
        self._files.append(self._write([sorted_run(hashes[:, 0], hashes[:, 1], times)], len(times)))
        while len(self._files) > 1 and self._files[-2].rows < 2 * self._files[-1].rows:
            other, one = self._files.pop(), self._files.pop()
            self._files.append(self._write(_merge(one, other), one.rows + other.rows))
            self._supersede(one, other)

    def forget_before(self, least_ms: int) -> None:
        """Drops those that arrived earlier."""
        kept = []
        for file in self._files:
            if file.oldest >= least_ms:
                kept.append(file)
                continue
            rows = sum(int(np.count_nonzero(part.times >= least_ms)) for part in _parts(file))
            if rows:
                kept.append(self._write((part.since(least_ms) for part in _parts(file)), rows))
            self._supersede(file)
        self._files = kept

    def save(self, stand: dict[str, Any], from_ms: int) -> None:
        """From now on these are the identities of that state, also for who opens the folder next."""
        now = {file.path for file in self._files}
        for path in now - self._noted:
            _sync(path)
        files = [
            {"name": file.path.name, "rows": file.rows, "oldest": file.oldest, "newest": file.newest}
            for file in self._files
        ]
        note = {"version": _VERSION, "stand": stand, "from_ms": from_ms, "files": files}
        beside = self._folder / f"{_NOTE}.new"
        beside.write_text(json.dumps(note))
        _sync(beside)
        beside.rename(self._folder / _NOTE)
        _sync(self._folder)
        self.stand, self.from_ms = stand, from_ms
        self._remove(self._noted - now)
        self._noted = now

    def clear(self) -> None:
        """Nothing is here any more."""
        (self._folder / _NOTE).unlink(missing_ok=True)
        self._remove(self._noted | {file.path for file in self._files})
        self._files, self._noted = [], set()
        self.stand = self.from_ms = None

    def _taken(self, folder: Path | None) -> Path:
        if folder is None:
            self._passing = True
            return Path(tempfile.mkdtemp(prefix="manta-identities-"))
        try:
            self._mark = hold(folder)
        except BlockingIOError:
            self._passing = True
            folder = folder / uuid.uuid4().hex
            self._mark = hold(folder)
            return folder
        remove_abandoned(folder)
        return folder

    def _load(self) -> None:
        """What the note names; everything else that lies there is half, or was superseded."""
        try:
            note = json.loads((self._folder / _NOTE).read_text())
            if note["version"] == _VERSION:
                self._files = [
                    _mapped(self._folder / f["name"], f["rows"], f["oldest"], f["newest"]) for f in note["files"]
                ]
                self.stand, self.from_ms = note["stand"], note["from_ms"]
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: made anew
            self._files = []
        self._noted = {file.path for file in self._files}
        self._remove(path for path in self._folder.glob("*.run") if path not in self._noted)

    def _supersede(self, *files: _File) -> None:
        """What nobody would find again goes at once: a state that is made anew takes no room twice."""
        self._remove(file.path for file in files if file.path not in self._noted)

    def _write(self, pieces: Iterable[Run], rows: int) -> _File:
        path = self._folder / f"{uuid.uuid4().hex}.run"
        done, oldest, newest = 0, [], []
        with path.open("wb") as file:
            for piece in pieces:
                for place, column in enumerate(piece):
                    file.seek((place * rows + done) * 8)
                    file.write(np.ascontiguousarray(column).data)
                done += len(piece.times)
                if len(piece.times):
                    oldest.append(int(piece.times.min()))
                    newest.append(int(piece.times.max()))
        return _mapped(path, rows, min(oldest), max(newest))

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            with suppress(OSError):
                path.unlink()


def _mapped(path: Path, rows: int, oldest: int, newest: int) -> _File:
    if path.stat().st_size != rows * _ROW_BYTES:
        raise ValueError(f"{path}: found {path.stat().st_size} bytes, wanted {rows} identities")
    with path.open("rb") as file:
        return _File(path, rows, oldest, newest, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _cuts(run: Run, parts: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each of so many equal parts of all hashes."""
    edges = np.array([(place << 64) // parts for place in range(1, parts)], np.uint64)
    return pairwise([0, *np.searchsorted(run.first, edges).tolist(), len(run.first)])


def _parts(file: _File) -> Iterator[Run]:
    for start, end in _cuts(file.run, math.ceil(file.rows / _SLICE_ROWS)):
        yield file.run.part(start, end)
        file.let_go()


def _merge(one: _File, other: _File) -> Iterator[Run]:
    parts = math.ceil((one.rows + other.rows) / _SLICE_ROWS)
    for (start, end), (low, high) in zip(_cuts(one.run, parts), _cuts(other.run, parts), strict=True):
        yield merged(one.run.part(start, end), other.run.part(low, high))
        one.let_go()
        other.let_go()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
