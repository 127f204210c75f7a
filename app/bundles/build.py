"""Fitted parts -> a bundle folder: written beside, synced, renamed into place; whole or not there."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import save_file

from app.bundles.judged import JUDGED, Judged
from app.bundles.manifest import MANIFEST, Comparison, FamilyEntry, Manifest, ValidationSplit, hash_of, verify
from app.bundles.whole import WRITING, appear
from app.errors import BundleError
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue
from app.ranking.ranker import Ranker

ITEMS = "items.parquet"
SPEC = "features/spec.json"
STATISTICS = "features/statistics.safetensors"
RANKER = "ranker"
MODELS = "models"
POPULAR = "popular.safetensors"
LISTS = "lists.sst"


class Lineage(BaseModel):
    """Where a bundle came from; goes into its manifest as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    surfaces: tuple[str, ...] = ()
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


def write_bundle(
    parent: Path,
    *,
    bundle_id: str,
    catalogue: Catalogue,
    models: Mapping[str, CandidateModel],
    mix: Sequence[tuple[str, int]],
    candidates: int,
    ranker: Ranker | None,
    spec: FeatureSpec,
    statistics: ItemStatistics,
    popular: NDArray[np.int32],
    lineage: Lineage,
    judged: Judged | None = None,
    write_lists: Callable[[Path], None] | None = None,
    created: datetime | None = None,
) -> Path:
    """Writes the folder `parent / bundle_id` and verifies it.

    Args:
        models: fitted on the catalogue's rows, by the name that the mix uses.
        candidates: how many reach the ranker, as it was trained.
        ranker: None: retrieval order is the bundle's answer.
        popular: int32 rows, most popular first: the last rung of the ladder.
        judged: how it did on each validation case.
        write_lists: writes the precomputed lists to the path it is given (an SST file, `app.cache`).
        created: None: now.

    Raises:
        BundleError: parts that do not belong together, or the id is taken.
        OSError: the disk is full; nothing is left behind.
    """
    _check_parts(catalogue, models, mix, statistics)
    target = parent / bundle_id
    if target.exists():
        raise BundleError(f"{target}: found a bundle of that id, wanted a new id (bundles never change)")
    parent.mkdir(parents=True, exist_ok=True)
    with _whole_or_not_there(target) as temporary:
        _write_parts(temporary, catalogue, models, ranker, spec, statistics, popular)
        if judged is not None:
            judged.save(temporary / JUDGED)
        if write_lists is not None:
            write_lists(temporary / LISTS)
        files = _files(temporary)
        sizes = {"items": len(catalogue), "bytes": _bytes(files), **lineage.sizes}
        manifest = Manifest(
            id=bundle_id,
            created=created or datetime.now(UTC),
            families=tuple(
                FamilyEntry(name=name, family=model.family, params=_params_of(model)) for name, model in models.items()
            ),
            mix=tuple((name, k) for name, k in mix),
            candidates=candidates,
            ranker="" if ranker is None else ranker.kind,
            files={name: hash_of(path) for name, path in sorted(files.items())},
            **{**dict(lineage), "sizes": sizes},
        )
        (temporary / MANIFEST).write_bytes(manifest.encoded())
    return target


def rewrite_bundle(
    folder: Path, bundle_id: str, change: Callable[[Path], None], comparisons: Mapping[str, Comparison]
) -> Path:
    """Writes a bundle again beside the old one under a new id, with other files: `FOLDER/../BUNDLE_ID`.

    Args:
        folder: of the old one, which stays as it is.
        change: gets a copy of its files to change, remove or add some.
        comparisons: the new one's.

    Raises:
        BundleError: the old one is damaged, or the id is taken.
        OSError: the disk is full; nothing is left behind.
    """
    manifest = verify(folder)
    target = folder.parent / bundle_id
    with _whole_or_not_there(target) as temporary:
        for name in manifest.files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, temporary / name)
        change(temporary)
        files = _files(temporary)
        new = manifest.model_copy(
            update={
                "id": bundle_id,
                "comparisons": dict(comparisons),
                "files": {name: hash_of(path) for name, path in sorted(files.items())},
                "sizes": manifest.sizes | {"bytes": _bytes(files)},
            }
        )
        (temporary / MANIFEST).write_bytes(new.encoded())
    return target


@contextmanager
def _whole_or_not_there(target: Path) -> Iterator[Path]:
    """A folder to write a bundle into; verified, synced and renamed to `target` behind the block."""
    temporary = Path(tempfile.mkdtemp(prefix=WRITING, dir=target.parent))
    try:
        yield temporary
        verify(temporary)
        temporary.chmod(0o755)
        appear(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _files(folder: Path) -> dict[str, Path]:
    """Every file below, by its path from there."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _bytes(files: Mapping[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def write_catalogue(file: Path, catalogue: Catalogue) -> None:
    """Writes `item_id` and the item columns as Parquet, row by row as the models know them."""
    table = catalogue.columns.add_column(0, "item_id", pa.array(catalogue.item_ids, pa.string()))
    pq.write_table(table, file, compression="zstd")


def _check_parts(
    catalogue: Catalogue,
    models: Mapping[str, CandidateModel],
    mix: Sequence[tuple[str, int]],
    statistics: ItemStatistics,
) -> None:
    for name, model in models.items():
        if model.n_items != len(catalogue):
            raise BundleError(f"model {name}: found {model.n_items} items, wanted the catalogue's {len(catalogue)}")
    if statistics.n_items != len(catalogue):
        raise BundleError(f"statistics: found {statistics.n_items} items, wanted the catalogue's {len(catalogue)}")
    unknown = [name for name, _ in mix if name not in models]
    if unknown or not mix:
        raise BundleError(f"mix: found {unknown or 'no source'}, wanted some of {sorted(models)}")


def _write_parts(
    folder: Path,
    catalogue: Catalogue,
    models: Mapping[str, CandidateModel],
    ranker: Ranker | None,
    spec: FeatureSpec,
    statistics: ItemStatistics,
    popular: NDArray[np.int32],
) -> None:
    write_catalogue(folder / ITEMS, catalogue)
    for name, model in models.items():
        (folder / MODELS / name).mkdir(parents=True)
        model.save(folder / MODELS / name)
    (folder / SPEC).parent.mkdir()
    (folder / SPEC).write_text(spec.model_dump_json(indent=1))
    statistics.save(folder / STATISTICS)
    if ranker is not None:
        (folder / RANKER).mkdir()
        ranker.save(folder / RANKER)
    save_file({"rows": np.ascontiguousarray(popular, np.int32)}, folder / POPULAR)


def _params_of(model: CandidateModel) -> dict[str, object]:
    params = getattr(model, "params", None)
    return dict(params.model_dump(mode="json")) if isinstance(params, BaseModel) else {}
