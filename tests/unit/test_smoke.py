"""The one smoke request: the whole chain, in a process of its own."""

import sys
from pathlib import Path

import pytest

from app.errors import BundleError
from app.smoke import smoke, smoke_apart
from tests.unit.tiny_bundle import write_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path, "b1")


def test_a_sound_bundle_answers(folder: Path) -> None:
    assert 0 < smoke_apart(folder) < 1000
    with pytest.raises(BundleError, match=r"no answer within 0\.01 s"):
        smoke_apart(folder, limit_s=0.01)


def test_a_ranker_that_gives_no_numbers_is_found(tmp_path: Path) -> None:
    """Retrieval alone would not see it."""
    with pytest.raises(BundleError, match="wanted 5 scored items"):
        smoke(write_tiny(tmp_path, "b1", sick=True))


def test_what_cannot_be_loaded_or_kills_the_process_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "popular.safetensors").unlink()
    with pytest.raises(BundleError, match=r"popular\.safetensors"):
        smoke_apart(folder)
    dies = tmp_path / "dies"
    dies.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    with pytest.raises(BundleError, match="killed by signal 11"):
        smoke_apart(folder)
