"""A bundle folder -> the objects that answer: verified, loaded, measured. Runs no code from the bundle."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from app.bundles.build import ITEMS, LISTS, MODELS, POPULAR, RANKER, SPEC, STATISTICS
from app.bundles.manifest import Manifest, read_manifest, verify
from app.errors import BundleError, SettingsError
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import feature_names
from app.models.candidate import CandidateModel
from app.models.families import load_model
from app.models.interactions import Catalogue
from app.ranking.kinds import RANKERS
from app.ranking.ranker import Ranker
from app.retrieval.sources import Source, source_of

EncodeItems = Callable[[Sequence[Mapping[str, Any]]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """Everything of one bundle that answering needs. Shared and never changed after loading.

    Attributes:
        folder: where it was loaded from.
        catalogue: its items; rows are the models' rows.
        models, sources: by the name that the mix uses.
        ranker: None: retrieval order is the configured answer.
        spec, statistics: of the features.
        items: content arrays of the catalogue's rows; a replica takes a `copy()` to put later items into.
        encode_items: columns of items -> content vectors float32 (n, d) of the `content` source; None without one.
        popular: int32 rows, most popular first.
        lists: the precomputed lists (SST file) or None.
        bytes: what it holds in memory, about: the size of its files without the lists, which stay on the disk.
    """

    folder: Path
    manifest: Manifest
    catalogue: Catalogue
    models: Mapping[str, CandidateModel]
    sources: Mapping[str, Source]
    ranker: Ranker | None
    spec: FeatureSpec
    statistics: ItemStatistics
    items: ItemFeatures
    encode_items: EncodeItems | None
    popular: NDArray[np.int32]
    lists: Path | None
    bytes: int

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def mix(self) -> tuple[tuple[str, int], ...]:
        """Sources and candidates of each, as the bundle chose them on validation."""
        return self.manifest.mix


def load_bundle(folder: Path, *, check_hashes: bool = True) -> LoadedBundle:
    """Verifies and loads a bundle.

    Args:
        folder: the bundle's own folder.
        check_hashes: False only where `verify` has just passed on this machine.

    Raises:
        BundleError: it is missing, damaged, of an unknown format, family or ranker, or its parts disagree.
    """
    manifest = verify(folder) if check_hashes else read_manifest(folder)
    try:
        return _load(folder, manifest)
    except (OSError, pa.ArrowException, SafetensorError, SettingsError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder}: found unreadable contents ({error}), wanted a bundle of this version") from error


def load_ranker(folder: Path, manifest: Manifest) -> Ranker | None:
    """The ranker alone, for a stage that only ranks; the caller has verified the bundle.

    Raises:
        BundleError: of an unknown kind, or unreadable.
    """
    if not manifest.ranker:
        return None
    if manifest.ranker not in RANKERS:
        raise BundleError(f"{folder}: ranker: found kind {manifest.ranker!r}, wanted one of {sorted(RANKERS)}")
    return RANKERS[manifest.ranker].load(folder / RANKER)


def read_catalogue(file: Path) -> Catalogue:
    """The items of a bundle, as `write_catalogue` wrote them."""
    table = pq.read_table(file, memory_map=True)
    return Catalogue.of(table.column("item_id").to_pylist(), table.drop_columns(["item_id"]))


def _load(folder: Path, manifest: Manifest) -> LoadedBundle:
    catalogue = read_catalogue(folder / ITEMS)
    models = {entry.name: load_model(entry.family, folder / MODELS / entry.name) for entry in manifest.families}
    spec = FeatureSpec.model_validate(json.loads((folder / SPEC).read_text()))
    statistics = ItemStatistics.load(folder / STATISTICS)
    ranker = load_ranker(folder, manifest)
    _check_agreement(folder, manifest, catalogue, models, spec, statistics, ranker)
    popular = load_file(folder / POPULAR)["rows"]
    lists = folder / LISTS
    content = next((model for model in models.values() if hasattr(model, "encode_items")), None)
    held = sum((folder / name).stat().st_size for name in manifest.files if name != LISTS)
    return LoadedBundle(
        folder=folder,
        manifest=manifest,
        catalogue=catalogue,
        models=models,
        sources={name: source_of(model) for name, model in models.items()},
        ranker=ranker,
        spec=spec,
        statistics=statistics,
        items=ItemFeatures.of(spec, catalogue),
        encode_items=getattr(content, "encode_items", None),
        popular=popular,
        lists=lists if lists.exists() else None,
        bytes=held,
    )


def _check_agreement(
    folder: Path,
    manifest: Manifest,
    catalogue: Catalogue,
    models: Mapping[str, CandidateModel],
    spec: FeatureSpec,
    statistics: ItemStatistics,
    ranker: Ranker | None,
) -> None:
    n = len(catalogue)
    for name, model in models.items():
        if model.n_items != n:
            raise BundleError(f"{folder}: model {name}: found {model.n_items} items, wanted the catalogue's {n}")
    if statistics.n_items != n:
        raise BundleError(f"{folder}: statistics: found {statistics.n_items} items, wanted the catalogue's {n}")
    if missing := [name for name, _ in manifest.mix if name not in models]:
        raise BundleError(f"{folder}: mix: found {missing}, wanted some of {sorted(models)}")
    names = feature_names(spec)
    if ranker is not None and tuple(ranker.feature_names) != names:
        raise BundleError(f"{folder}: ranker: found features {ranker.feature_names}, wanted those of the spec {names}")
