"""The artifact store: alike in a folder, at its address, and in S3; bundles go through it whole or not at all."""

from pathlib import Path

import pytest
from pyarrow import fs

from app.artifacts import Place, StoreError, below, file_system, shown
from app.bundles.load import load_bundle
from app.bundles.manifest import MANIFEST
from app.bundles.transfer import export_bundle, import_bundle
from app.errors import BundleError, Conflict, MantaError
from tests.contract.s3 import SECRET, address, s3
from tests.contract.test_bundles import folder, made, written

__all__ = ["folder", "made", "s3", "written"]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(params=["folder", "address", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "address":
        return (tmp_path / "store").as_uri()
    return address(request.getfixturevalue("s3"), f"{tmp_path.name}/store")


def test_a_place_keeps_lists_and_forgets_files(store: str, tmp_path: Path) -> None:
    place = Place.of(store)
    assert place.folders() == place.folders_with("m.json") == []
    large = tmp_path / "large"
    large.write_bytes(b"0123456789" * 1_000_000)  # more than one piece, and than one part of an upload
    assert (place / "b1").put("models/one/large.json", large) == 10_000_000
    (tmp_path / "small").write_bytes(b"{}")
    (place / "b1").put("m.json", tmp_path / "small")
    (place / "b2").put("other.json", tmp_path / "small")
    assert (place / "b1").has("m.json")
    assert not (place / "b2").has("m.json")
    assert place.folders() == ["b1", "b2"]
    assert place.folders_with("m.json") == ["b1"]
    assert (place / "b1").read("m.json") == b"{}"
    (place / "b1").get("models/one/large.json", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == large.read_bytes()
    place.remove("b1")
    place.remove("b1")
    assert place.folders() == ["b2"]
    with pytest.raises(StoreError):
        (place / "b1").read("m.json")


def test_a_bundle_goes_out_and_comes_in_from_any_store(store: str, written: Path, tmp_path: Path) -> None:
    sent = export_bundle(written, store)
    assert sent.place == below(store, "b1")
    came, _ = import_bundle(sent.place, tmp_path / "bundles")
    assert (tmp_path / "bundles" / "b1" / MANIFEST).read_bytes() == (written / MANIFEST).read_bytes()
    assert load_bundle(Path(came.place)).id == "b1"
    with pytest.raises(Conflict, match="bundles never change"):
        export_bundle(written, store)


def test_half_a_copy_is_no_bundle_and_is_made_whole_by_the_next(
    store: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, left = Place.put, [3]

    def torn(self: Place, name: str, source: Path) -> int:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return put(self, name, source)

    monkeypatch.setattr(Place, "put", torn)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(written, store)
    assert Place.of(store).folders() == ["b1"]
    assert Place.of(store).folders_with(MANIFEST) == []
    with pytest.raises(BundleError, match="wanted a bundle's folder"):
        import_bundle(below(store, "b1"), tmp_path / "bundles")
    assert not [path for path in (tmp_path / "bundles").glob("*") if path.name != MANIFEST]
    left[0] = 1000
    export_bundle(written, store)
    assert import_bundle(below(store, "b1"), tmp_path / "bundles")[0].bundle == "b1"


def test_what_was_damaged_in_the_store_does_not_arrive(store: str, written: Path, tmp_path: Path) -> None:
    place = Place.of(export_bundle(written, store).place)
    (tmp_path / "bad").write_bytes(b"not what it was")
    place.put("popular.safetensors", tmp_path / "bad")
    with pytest.raises(BundleError, match=r"popular\.safetensors: found SHA-256"):
        import_bundle(below(store, "b1"), tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())


def test_a_store_that_refuses_is_one_line(s3: str, written: Path) -> None:
    wrong = address(s3, "x").replace(SECRET, "wrong-secret")
    with pytest.raises(MantaError, match="wanted a place that can be written") as refused:
        export_bundle(written, wrong)
    assert "wrong-secret" not in str(refused.value)
    assert shown(wrong) == wrong.replace("wrong-secret", "***")
    assert shown("/a:b@c") == "/a:b@c"


def test_addresses_of_all_stores() -> None:
    system, path = file_system("gs://anonymous@shop/bundles")
    assert isinstance(system, fs.GcsFileSystem)
    assert path == "shop/bundles"
    (options,) = system.__reduce__()[1]
    assert options["retry_time_limit"].total_seconds() == 30, "nobody waits for a quarter of an hour"
    (options,) = file_system("gs://anonymous@shop/a?retry_limit_seconds=7")[0].__reduce__()[1]
    assert options["retry_time_limit"].total_seconds() == 7
    with pytest.raises(MantaError, match="wanted a path, s3:// or gs://") as refused:
        file_system("ftp://me:s3cret@host/x")
    assert "s3cret" not in str(refused.value)
    assert below("s3://k:s@shop/a/?scheme=http&region=x", "b") == "s3://k:s@shop/a/b?scheme=http&region=x"
    assert below("/data/who?/", "b") == "/data/who?/b"
