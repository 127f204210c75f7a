"""Promotion without a running system: hashes, gate and smoke, then the alias."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.bundles.manifest import MANIFEST, hash_of, read_manifest, verify
from app.bundles.registry import open_registry
from app.errors import GateRefused
from app.settings import Settings
from tests.unit.tiny_bundle import register_tiny
from tune.promote import promote, rollback

PROMOTER = """
import sys
from pathlib import Path
from app.bundles.gate import admit
from app.bundles.registry import open_registry
from app.errors import MantaError
from app.settings import Settings
from tune.promote import _moved
home, bundle = sys.argv[1:]
settings = Settings.model_validate({'surfaces': {'home': {}, 'related': {}}})
registry = open_registry(settings, Path(home))
print('ready', flush=True)
sys.stdin.readline()
try:
    print('won', _moved(registry, admit(registry, settings, bundle, expected='first')).state)
except MantaError as error:
    print('lost', error)
"""

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


def test_of_promotions_at_once_in_several_processes_one_wins_and_the_others_hear_who(tmp_path: Path) -> None:
    registry = open_registry(SETTINGS, tmp_path)
    names = ("first", "one", "two", "three")
    for name in names:
        registry.register(
            name, tmp_path / name, {"id": name, "metrics": {"ndcg_at_10": 0.1}, "validation": {"cases": 1}}
        )
    registry.move("first", {"home": None, "related": None})
    command = [sys.executable, "-c", PROMOTER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racing = {name: subprocess.Popen([*command, name], **pipes) for name in names[1:]}  # type: ignore[call-overload]
    for process in racing.values():
        assert process.stdout.readline() == "ready\n"
    told = {name: process.communicate("go\n", timeout=60)[0].strip() for name, process in racing.items()}
    (winner,) = [name for name, said in told.items() if said == "won live"]
    assert registry.aliases().live == {"home": winner, "related": winner}
    assert all(said.startswith("lost") and winner in said for name, said in told.items() if name != winner), told
    kept = {one.bundle: one for one in registry.promotions()}
    assert kept[winner].state == "live"
    for loser in set(names[1:]) - {winner}:
        assert kept[loser].state in ("failed", "refused")
        assert winner in str(kept[loser].reason)


def test_a_bundle_that_was_changed_with_its_manifest_is_found_by_the_registry(tmp_path: Path) -> None:
    register_tiny(SETTINGS, tmp_path, "first")
    folder = tmp_path / "bundles" / "first"
    (folder / "features" / "spec.json").write_text((folder / "features" / "spec.json").read_text() + " ")
    manifest = read_manifest(folder)
    files = {**manifest.files, "features/spec.json": hash_of(folder / "features" / "spec.json")}
    (folder / MANIFEST).write_bytes(manifest.model_copy(update={"files": files}).encoded())
    assert verify(folder).id == "first"  # sound in itself
    with pytest.raises(GateRefused, match=r"hashes: .*features/spec\.json: found SHA-256 .* as registered"):
        promote(SETTINGS, tmp_path, "first", force=True)


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
