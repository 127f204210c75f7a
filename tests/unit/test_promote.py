"""Promotion without a running system: hashes, gate and smoke, then the alias."""

from pathlib import Path

import pytest

from app.bundles.registry import open_registry
from app.errors import GateRefused
from app.settings import Settings
from tests.unit.tiny_bundle import register_tiny
from tune.promote import promote, rollback

SETTINGS = Settings.model_validate({"surfaces": {"home": {}, "related": {}}})


def test_promote_refuse_force_and_roll_back(tmp_path: Path) -> None:
    for bundle, ndcg in (("first", 0.1), ("worse", 0.05)):
        register_tiny(SETTINGS, tmp_path, bundle, ndcg=ndcg)
    assert promote(SETTINGS, tmp_path, "first").surfaces == ("home", "related")
    with pytest.raises(GateRefused, match=r"0\.0500 against 0\.1000"):
        promote(SETTINGS, tmp_path, "worse", ["home"])
    with pytest.raises(GateRefused, match="expected worse to be live"):
        promote(SETTINGS, tmp_path, "worse", ["home"], expected="worse", force=True)
    assert promote(SETTINGS, tmp_path, "worse", ["home"], force=True, expected="first").state == "live"
    assert open_registry(SETTINGS, tmp_path).aliases().live == {"home": "worse", "related": "first"}
    assert rollback(SETTINGS, tmp_path, "home").bundle == "first"
    assert open_registry(SETTINGS, tmp_path).live("home") == "first"


def test_one_flipped_bit_is_refused_even_by_force(tmp_path: Path) -> None:
    register_tiny(SETTINGS, tmp_path, "first")
    file = next((tmp_path / "bundles" / "first").rglob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(GateRefused, match=rf"hashes: .*{file.name}: found SHA-256"):
        promote(SETTINGS, tmp_path, "first", force=True)
    assert open_registry(SETTINGS, tmp_path).aliases().live == {}


def test_the_offline_way_asks_the_whole_chain_too(tmp_path: Path) -> None:
    """A ranker that gives no numbers: its files are as they were written, its candidates are fine."""
    register_tiny(SETTINGS, tmp_path, "sick", sick=True)
    with pytest.raises(GateRefused, match=r"smoke request: .*scored items"):
        promote(SETTINGS, tmp_path, "sick", force=True)
    assert open_registry(SETTINGS, tmp_path).aliases().live == {}
