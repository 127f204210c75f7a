"""Erasure from whatever else lies in files: logs, sweeps, notes, Ray's session. Looked through byte by byte.

Text keeps its length: an id is overwritten where it stands, so that whoever is writing on the file goes on undisturbed.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from app.erasure.places import PlaceReport, Subject, cleared
from app.errors import MantaError

# What other places clear, or what is nobody's data: first parts of paths under MANTA_HOME.
OTHERS = frozenset({"lake", "state", "stats", "bundles", "kafka", "cache", "checkpoints", "ray", "registry.db"})
# Ray's copies of objects that did not fit into memory, as long as a job needs them.
_SPILLED = re.compile(r"spill")
_LOG = re.compile(r"\.(log|out|err)(\.|$)")
_TEXT = re.compile(r"\.(log|out|err|txt|jsonl?|ya?ml|csv|tsv|md|html|pbtxt)(\.|$)")
# Bytes: a shorter id may be a number or the name of a surface. It is looked for in logs alone, and where ids stand.
_TELLING = 16
_WHERE_IDS_STAND = (
    (rb"(?<=[\"'])", rb"(?=[\"'])"),
    *((rb"(?<=" + before + rb")", rb"(?=[/?&\s\"']|$)") for before in (b"/users/", b"/recommend/", b"_id=")),
)
_MASK = b"*"
_PIECE, _OVERLAP = 1 << 24, 1 << 12  # bytes; ids have 128 at most, six times that where escaped


class LooseFilesPlace:
    """Files under MANTA_HOME that no other place clears, and Ray's session folder.

    Args:
        home: MANTA_HOME.
        session: Ray's folder, if a system is up.
    """

    name = "logs and other files"

    def __init__(self, home: Path, session: Path | None = None) -> None:
        self._home, self._session = home, session

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`.

        Raises:
            MantaError: a job that runs has the user's rows in a file, or a file that is no text names him.
        """
        ids = (subject.user_id, *subject.sessions)
        telling = [name for name in ids if len(name.encode()) >= _TELLING]
        in_logs = re.compile(b"|".join(_patterns(ids)))
        wanted = re.compile(b"|".join(_patterns(telling))) if telling else None
        looked = changed = 0
        for path in self._files():
            looked += 1
            pattern = in_logs if _LOG.search(path.name) else wanted
            changed += pattern is not None and self._look(path, pattern)
        return [cleared(self.name, f"{looked} looked through, {changed} changed or removed")]

    def _files(self) -> Iterator[Path]:
        for path in sorted(self._home.iterdir()) if self._home.is_dir() else ():
            if path.name in OTHERS or path.name.startswith("registry.db"):
                continue
            yield from _below(path)
        if self._session is not None:
            yield from _below(self._session)

    def _look(self, path: Path, wanted: re.Pattern[bytes]) -> bool:
        """Whether the file held an id, which it does no more."""
        try:
            places = _places(path, wanted)
        except FileNotFoundError:  # it has gone meanwhile
            return False
        if not places:
            return False
        if _TEXT.search(path.name):
            _overwrite(path, places)
        elif (trial := _tune_folder(path)) is not None:
            shutil.rmtree(trial, ignore_errors=True)
        elif _SPILLED.search(str(path)):
            raise MantaError(f"{self.name}: a job that runs has rows of the user in a file, wanted it to end first")
        else:
            shown = wanted.sub(b"(the user)", str(path).encode()).decode(errors="replace")
            raise MantaError(f"{self.name}: found the user in {shown}, wanted him in no file that is no text")
        return True


def _below(path: Path) -> Iterator[Path]:
    if path.is_symlink():
        return
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (one for one in sorted(path.rglob("*")) if one.is_file() and not one.is_symlink())


def _places(path: Path, wanted: re.Pattern[bytes]) -> list[tuple[int, int]]:
    """(start, end) of each match, from its piece of the file and the one behind."""
    found: dict[int, int] = {}
    start, held = 0, b""

    def look(last: bool) -> None:
        for match in wanted.finditer(held):
            if last or match.end() < len(held):  # what follows decides where a short id ends
                found[start + match.start()] = start + match.end()

    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            held += piece
            look(False)
            start, held = start + max(0, len(held) - _OVERLAP), held[-_OVERLAP:]
    look(True)
    return sorted(found.items())


def _patterns(ids: Sequence[str]) -> Iterator[bytes]:
    """The ways in which an id stands in text: as it is, as in JSON, in an address, in Python's messages."""
    for name in ids:
        forms = {
            name.encode(),
            json.dumps(name)[1:-1].encode(),
            quote(name, safe="").encode(),
            repr(name)[1:-1].encode(),
        }
        for form in sorted(forms, key=len, reverse=True):
            plain = re.escape(form)
            if len(name.encode()) >= _TELLING:
                yield plain
            else:
                yield from (before + plain + behind for before, behind in _WHERE_IDS_STAND)


def _overwrite(path: Path, places: Sequence[tuple[int, int]]) -> None:
    with path.open("r+b") as file:
        for start, end in places:
            file.seek(start)
            file.write(_MASK * (end - start))


def _tune_folder(path: Path) -> Path | None:
    """The folder of Ray Tune in which the file lies, which a killed sweep left; a resumed one makes its own."""
    return next((folder for folder in path.parents if folder.name == "tune" and "sweeps" in folder.parts), None)
