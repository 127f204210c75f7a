"""The bundle format: what was written answers the same after loading; anything else is refused."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from app.bundles.build import Lineage, write_bundle
from app.bundles.load import LoadedBundle, load_bundle
from app.bundles.manifest import MANIFEST, Manifest, read_manifest, verify
from app.cache import write_lists_sst
from app.errors import BundleError
from app.recommend import Answer
from tests.unit.chain_world import DAY_MS, TinyBundle, World, bundle


def write(parent: Path, made: TinyBundle, bundle_id: str = "b1") -> Path:
    return write_bundle(
        parent,
        bundle_id=bundle_id,
        catalogue=made.catalogue,
        models=made.models,
        mix=made.mix,
        candidates=50,
        ranker=made.ranker,
        spec=made.spec,
        statistics=made.statistics,
        popular=made.popular,
        lineage=Lineage(surfaces=("home",), snapshot="s1", metrics={"ndcg_at_10": 0.25}),
        write_lists=partial(write_lists_sst, lists={"u:1": np.array([3, 1], np.int32)}),
    )


@pytest.fixture(scope="module")
def made() -> TinyBundle:
    return bundle()


@pytest.fixture(scope="module")
def written(made: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundles"), made)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(written, tmp_path / "b1"))


def answers(of: TinyBundle | LoadedBundle) -> Iterator[Answer]:
    world = World(of)  # type: ignore[arg-type]
    for user in range(8):
        world.click(f"u{user}", *[f"i{(user * 7 + place) % 60}" for place in range(user)], start_ms=30 * DAY_MS)
        yield world.answer(user_id=f"u{user}", k=20)


def test_saved_and_loaded_answer_alike(made: TinyBundle, written: Path) -> None:
    loaded = load_bundle(written)
    for before, after in zip(answers(made), answers(loaded), strict=True):
        assert before.degraded is after.degraded is None
        assert before.items == after.items
    assert loaded.id == "b1"
    assert loaded.mix == made.mix
    assert loaded.catalogue.item_ids == made.catalogue.item_ids
    assert loaded.catalogue.columns.equals(made.catalogue.columns)
    assert loaded.lists == written / "lists.sst"
    assert loaded.encode_items is not None
    assert loaded.encode_items([{"genres": ["War"]}]).dtype == np.float32
    assert loaded.bytes > 0
    assert loaded.manifest.metrics == {"ndcg_at_10": 0.25}
    assert loaded.manifest.sizes["items"] == 60


def test_one_flipped_bit_in_any_file_is_refused(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".json", ".parquet", ".safetensors", ".sst"}  # inert formats only
    for path in files:
        raw = path.read_bytes()
        for place in {0, len(raw) // 2, len(raw) - 1}:
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
            with pytest.raises(BundleError) as refused:
                verify(folder)
            assert path.name in str(refused.value)
        path.write_bytes(raw)
    assert verify(folder).id == "b1"


def test_files_that_are_missing_extra_or_links_are_refused(folder: Path) -> None:
    extra = folder / "models" / "more.json"
    extra.write_text("{}")
    with pytest.raises(BundleError, match=r"more\.json: found a file that the manifest does not list"):
        load_bundle(folder)
    extra.unlink()
    items = folder / "items.parquet"
    items.rename(folder.parent / "elsewhere.parquet")
    with pytest.raises(BundleError, match=r"items\.parquet: found no file, wanted SHA-256"):
        load_bundle(folder)
    items.symlink_to(folder.parent / "elsewhere.parquet")
    with pytest.raises(BundleError, match="found a link"):
        load_bundle(folder)
    with pytest.raises(BundleError, match="wanted a bundle's manifest"):
        load_bundle(folder.parent / "nothing")


def rewrite(folder: Path, **changes: object) -> None:
    """A manifest that is consistent in itself but says something else."""
    document = json.loads((folder / MANIFEST).read_text())
    document.pop("checksum")
    document |= changes
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version: found 2, wanted 1"),
        ({"format_version": None}, "format_version: found None, wanted 1"),
        ({"files": {"../../etc/passwd.json": "0" * 64}}, "plain relative path"),
        ({"files": {"/etc/passwd.json": "0" * 64}}, "plain relative path"),
        ({"files": {"a\\b.json": "0" * 64}}, "plain relative path"),
        ({"files": {"model.pkl": "0" * 64}}, "inert formats"),
        ({"id": "../x"}, "id: found"),
        ({"families": [{"name": "../x", "family": "ease", "params": {}}]}, "name: found"),
        ({"surprise": 1}, "surprise: found 1"),
        ({"ranker": "oracle"}, "ranker: found kind 'oracle', wanted one of"),
        ({"families": [{"name": "item_knn", "family": "oracle", "params": {}}]}, "oracle"),
        ({"mix": [["oracle", 10]]}, r"mix: found \['oracle'\]"),
    ],
)
def test_a_manifest_that_says_the_wrong_thing_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_unreadable_manifests(folder: Path) -> None:
    for text in ("", "[]", "{", "\udcff"):
        (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(BundleError, match=r"manifest\.json"):
            read_manifest(folder)


def test_an_id_is_written_once_and_a_failure_leaves_nothing(made: TinyBundle, tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_bundle(
            tmp_path,
            bundle_id="b2",
            catalogue=made.catalogue,
            models=made.models,
            mix=made.mix,
            candidates=50,
            ranker=None,
            spec=made.spec,
            statistics=made.statistics,
            popular=made.popular,
            lineage=Lineage(),
            write_lists=full,
        )
    assert list(tmp_path.iterdir()) == []
    unranked = write(tmp_path, bundle(ranked=False), "b2")
    loaded = load_bundle(unranked)
    assert loaded.ranker is None
    assert World(loaded).answer(user_id="nobody").degraded is None  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="wanted a new id"):
        write(tmp_path, made, "b2")
    assert [path.name for path in tmp_path.iterdir()] == ["b2"]


def test_parts_that_do_not_belong_together_are_refused(made: TinyBundle, folder: Path) -> None:
    with pytest.raises(BundleError, match="wanted some of"):
        write(folder.parent / "new", TinyBundle(**{**vars(made), "mix": (("oracle", 5),)}), "b3")
    described = json.loads((folder / "ranker" / "ranker.json").read_text())
    described["features"][0] = "another"
    (folder / "ranker" / "ranker.json").write_text(json.dumps(described))
    with pytest.raises(BundleError, match="wanted those of the spec"):
        load_bundle(folder, check_hashes=False)


def test_manifest_survives_its_own_encoding() -> None:
    manifest = Manifest(id="b", created="2026-01-02T03:04:05.678901Z", families=(), mix=())
    assert (
        Manifest.model_validate({k: v for k, v in json.loads(manifest.encoded()).items() if k != "checksum"})
        == manifest
    )
