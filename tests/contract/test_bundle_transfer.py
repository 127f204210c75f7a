"""Bundles out of one system and into another: whole and verified, or not at all."""

from pathlib import Path

import pytest

from app.bundles.load import load_bundle
from app.bundles.manifest import MANIFEST
from app.bundles.transfer import export_bundle, import_bundle
from app.errors import BundleError, Conflict, MantaError
from tests.contract.test_bundles import folder, made, written

__all__ = ["folder", "made", "written"]


@pytest.mark.parametrize("as_address", [False, True])
def test_out_and_in_again_is_the_same_bundle(written: Path, tmp_path: Path, as_address: bool) -> None:
    store = (tmp_path / "store").as_uri() if as_address else str(tmp_path / "store")
    sent = export_bundle(written, store)
    assert sent.place == f"{store}/b1"
    came, manifest = import_bundle(sent.place, tmp_path / "bundles")
    assert (came.files, came.bytes) == (sent.files, sent.bytes)
    assert (tmp_path / "bundles" / "b1" / MANIFEST).read_bytes() == (written / MANIFEST).read_bytes()
    assert load_bundle(Path(came.place)).id == manifest.id == "b1"
    with pytest.raises(Conflict, match="bundles never change"):
        export_bundle(written, store)
    with pytest.raises(Conflict, match="bundles never change"):
        import_bundle(sent.place, tmp_path / "bundles")
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["b1"]


def test_a_damaged_one_neither_leaves_nor_arrives(folder: Path, tmp_path: Path) -> None:
    sent = export_bundle(folder, str(tmp_path / "store"))
    victim = next(file for file in sorted(Path(sent.place).rglob("*.safetensors")))
    victim.write_bytes(victim.read_bytes()[:-1] + b"X")
    with pytest.raises(BundleError, match="SHA-256"):
        import_bundle(sent.place, tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())
    (folder / "more.json").write_text("{}")
    with pytest.raises(BundleError, match="does not list"):
        export_bundle(folder, str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_is_none(written: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MantaError, match="wanted a place that can be written"):
        export_bundle(written, str(tmp_path / "file" / "below"))
    with pytest.raises(BundleError, match="wanted a bundle's folder"):
        import_bundle(str(tmp_path / "nothing"), tmp_path / "bundles")
    with pytest.raises(MantaError, match="wanted a path, s3:// or gs://"):
        import_bundle("nowhere://x", tmp_path / "bundles")


def test_what_a_killed_import_has_left_is_taken_as_it_stands_or_refused(written: Path, tmp_path: Path) -> None:
    """Killed between the folder's appearance and its registration."""
    sent, parent = export_bundle(written, str(tmp_path / "store")), tmp_path / "bundles"
    first, _ = import_bundle(sent.place, parent)
    stamp = (parent / "b1" / MANIFEST).stat().st_mtime_ns
    again, _ = import_bundle(sent.place, parent, known=lambda _: False)
    assert again == first
    assert (parent / "b1" / MANIFEST).stat().st_mtime_ns == stamp
    (parent / "b1" / "popular.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="popular"):
        import_bundle(sent.place, parent, known=lambda _: False)
    assert [path.name for path in parent.iterdir()] == ["b1"]
