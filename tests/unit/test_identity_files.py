"""Identities in files: the answers of a look by hand, whoever opens them next, and of no state but the one saved."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.identity import Hashes
from app.lake import identity_files
from app.lake.identity_files import IdentityFiles

HORIZON = 10


@pytest.fixture
def files(tmp_path: Path) -> Iterator[IdentityFiles]:
    found = IdentityFiles(tmp_path)
    yield found
    found.close()


def named(names: list[int]) -> Hashes:
    """Identities all over the range; every fourth has its first half in common with the next."""
    first = [(name // 4 * 4 * 0x9E3779B97F4A7C15) % 2**64 for name in names]
    return np.array([*zip(first, names, strict=True)], np.uint64).reshape(len(names), 2)


def arrived(times: list[int]) -> np.ndarray:
    return np.array(times, np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=20), max_size=6),
    st.lists(st.sampled_from(["", "save", "again", "forget"]), min_size=6, max_size=6),
)
def test_as_one_would_look_by_hand(batches: list[list[tuple[int, int]]], then: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, patch.object(identity_files, "_SLICE_ROWS", 7):
        files = IdentityFiles(Path(folder))
        kept: list[tuple[int, int]] = []
        least = 0
        for batch, what in zip(batches, then, strict=False):
            rows, times = named([name for name, _ in batch]), arrived([time for _, time in batch])
            by_hand = [any(name == other and abs(time - at) < HORIZON for other, at in kept) for name, time in batch]
            assert files.holds(rows, times, HORIZON).tolist() == by_hand
            files.add(rows, times)
            kept += batch
            if what == "forget":
                least = max(least, max((time for _, time in kept), default=0) - 30)
                files.forget_before(least)
                assert len(files) == sum(time >= least for _, time in kept)
                kept = [(name, time) for name, time in kept if time >= least]
            if what:
                files.save({"n": len(kept)}, 0)
            if what == "again":
                files.close()
                files = IdentityFiles(Path(folder))
                assert (files.stand, files.from_ms, len(files)) == ({"n": len(kept)}, 0, len(kept))
        files.close()


def test_what_was_not_saved_is_as_if_it_had_never_come(files: IdentityFiles, tmp_path: Path) -> None:
    files.add(named([1, 2, 3]), arrived([0, 0, 0]))
    files.save({"state": 1}, -5)
    files.add(named([4, 5]), arrived([0, 0]))  # merged with what was saved, whose file stays until the next note
    files.close()  # as the kernel does for a process that is killed
    again = IdentityFiles(tmp_path)
    assert (again.stand, again.from_ms) == ({"state": 1}, -5)
    assert again.holds(named([1, 2, 3, 4, 5]), arrived([0] * 5), HORIZON).tolist() == [True] * 3 + [False] * 2
    assert len(list(tmp_path.glob("*.run"))) == 1
    again.close()


@pytest.mark.parametrize("damage", ["note", "cut", "gone", "clear"])
def test_what_is_damaged_or_of_no_state_is_nothing(files: IdentityFiles, tmp_path: Path, damage: str) -> None:
    files.add(named([1, 2, 3]), arrived([0, 0, 0]))
    files.save({"state": 1}, 0)
    run = next(tmp_path.glob("*.run"))
    if damage == "note":
        (tmp_path / "note.json").write_text('{"version": 1, "stand": {}, "fi')
    elif damage == "cut":
        run.write_bytes(run.read_bytes()[:-8])
    elif damage == "gone":
        run.unlink()
    else:
        files.clear()
    files.close()
    again = IdentityFiles(tmp_path)
    assert (again.stand, again.from_ms, len(again)) == (None, None, 0)
    assert not again.holds(named([1]), arrived([0]), HORIZON).any()
    assert not list(tmp_path.glob("*.run"))
    again.close()


def test_of_two_at_once_the_second_has_a_folder_of_its_own(files: IdentityFiles, tmp_path: Path) -> None:
    files.add(named([1]), arrived([0]))
    files.save({"state": 1}, 0)
    other = IdentityFiles(tmp_path)
    assert other.stand is None
    other.add(named([2]), arrived([0]))
    other.save({"state": 2}, 0)
    assert files.holds(named([1, 2]), arrived([0, 0]), HORIZON).tolist() == [True, False]
    assert other.holds(named([1, 2]), arrived([0, 0]), HORIZON).tolist() == [False, True]
    other.close()
    files.close()
    again = IdentityFiles(tmp_path)
    assert again.stand == {"state": 1}
    again.close()
