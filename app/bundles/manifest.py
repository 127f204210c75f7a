"""The manifest of a bundle: what it is, where it came from, and the SHA-256 of every file. Verified before use."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# What may lie in a bundle: inert formats only. Nothing that a loader would execute.
SUFFIXES = frozenset({".json", ".parquet", ".arrow", ".safetensors", ".faiss", ".sst", ".txt"})

_LATER = ("data_hash", "segments", "comparisons")


def _inert_path(path: str) -> str:
    """A relative path inside the bundle, of an inert format, that no operating system reads otherwise."""
    pure = PurePosixPath(path)
    plain = str(pure) == path and not pure.is_absolute() and not any(c in path for c in "\\:\0")
    if not plain or any(part in ("..", ".") for part in pure.parts) or path == MANIFEST:
        raise ValueError("wanted a plain relative path inside the bundle")
    if pure.suffix not in SUFFIXES:
        raise ValueError(f"wanted one of the inert formats {', '.join(sorted(SUFFIXES))}")
    return path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FamilyEntry(_Part):
    """One fitted candidate family, saved under `models/NAME`."""

    name: str = Field(pattern=r"^[a-z0-9_][a-z0-9_-]{0,63}$")
    family: str
    params: dict[str, Any] = {}


class ValidationSplit(_Part):
    """Which events the metrics were measured on; two bundles are compared only on the same one."""

    snapshot: str = ""
    from_ms: int = 0
    to_ms: int = 0
    cases: int = Field(0, ge=0)
    seed: int = 0


class Paired(_Part):
    """Two bundles on the same cases: means of the metric, and how far apart they are.

    Attributes:
        low, high: 95 % interval of ours less theirs, paired by case, users drawn; None: no values by case were there.
    """

    cases: int = Field(ge=0)
    theirs: float
    ours: float
    low: float | None = None
    high: float | None = None


class Comparison(Paired):
    """A bundle against another, for the gate: `theirs` is the other's. `basis`: which cases they are, in words."""

    metric: str
    basis: str
    segments: dict[str, Paired] = {}


class Manifest(_Part):
    """`manifest.json`.

    Attributes:
        mix: sources and how many candidates of each, as chosen on validation.
        ranker: kind of the ranker under `ranker/`; empty: retrieval order is the answer.
        snapshot, sweep: id of the lake snapshot and of the sweep it came from; empty: none.
        data_hash: SHA-256 of what its models have learned from; empty: unknown.
        segments: metrics by segment of the validation cases (`history=1-4`), with `cases`.
        comparisons: by the id of a bundle that was live when this one was built.
        sizes: facts to show (items, users, events, bytes).
        files: path to SHA-256 (hex) of every other file.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    format_version: Literal[1] = 1
    created: datetime
    surfaces: tuple[str, ...] = ()
    families: tuple[FamilyEntry, ...]
    mix: tuple[tuple[str, Annotated[int, Field(ge=1)]], ...]
    candidates: int = Field(200, ge=1)
    ranker: str = ""
    snapshot: str = ""
    sweep: str = ""
    seed: int = 0
    code_version: str = ""
    data_hash: str = ""
    metrics: dict[str, float] = {}
    segments: dict[str, dict[str, float]] = {}
    comparisons: dict[str, Comparison] = {}
    validation: ValidationSplit = ValidationSplit()
    sizes: dict[str, int] = {}
    files: dict[Annotated[str, AfterValidator(_inert_path)], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}

    def encoded(self) -> bytes:
        """The one way a manifest is written; anything else on the disk was changed by someone."""
        document = self.model_dump(mode="json")
        for name in _LATER:  # bundles that were written before there was such a thing stay as they are
            if not document[name]:
                del document[name]
        text = json.dumps(document, sort_keys=True, ensure_ascii=False)
        document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, checked in itself; the files are not looked at.

    Raises:
        BundleError: it is missing, damaged or of another format version.
    """
    file = folder / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: found {error.strerror or error}, wanted a bundle's manifest") from None
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{file}: found {error}, wanted JSON") from None
    if not isinstance(document, dict):
        raise BundleError(f"{file}: found {type(document).__name__}, wanted an object")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(f"{file}: format_version: found {version!r}, wanted {FORMAT_VERSION}")
    document.pop("checksum", None)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {key}: found {first.get('input')!r}, wanted: {first['msg']}") from None
    if manifest.encoded() != raw:
        raise BundleError(f"{file}: found contents that do not match their own checksum, wanted them as written")
    return manifest


def verify(folder: Path, registered: Mapping[str, str] | None = None) -> Manifest:
    """Checks a bundle against its manifest: the very files, their hashes, no links. Needs nothing else.

    Args:
        registered: path to SHA-256 as they were when the bundle was registered, so that a manifest that was written
            anew to suit changed files is found too; None: the manifest is believed.

    Raises:
        BundleError: naming the file, what was found and what was wanted.
    """
    manifest = read_manifest(folder)
    wanted_files = manifest.files if registered is None else registered
    for name in sorted({*manifest.files, *wanted_files}):
        hashes = manifest.files.get(name), wanted_files.get(name)
        if hashes[0] != hashes[1]:
            place = f"{folder / MANIFEST}: {name}"
            raise BundleError(f"{place}: found SHA-256 {hashes[0]}, wanted {hashes[1]} as registered")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{path}: found a link or special file, wanted plain files only")
        if path.is_file() and name != MANIFEST:
            found[name] = path
    for name in sorted(found.keys() ^ manifest.files.keys()):
        what = "found a file that the manifest does not list" if name in found else "found no file"
        wanted = "none" if name in found else f"SHA-256 {manifest.files[name]}"
        raise BundleError(f"{folder / name}: {what}, wanted {wanted}")
    for name, path in found.items():
        if (digest := hash_of(path)) != manifest.files[name]:
            raise BundleError(f"{path}: found SHA-256 {digest}, wanted {manifest.files[name]}")
    return manifest


def hash_of(path: Path) -> str:
    """SHA-256 of a file, hex.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: found {error.strerror or error}, wanted a readable file") from None
