"""Precomputed lists and answers on a replica's own disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.cache import AnswerCache, ListStore, write_lists_sst
from app.errors import BundleError


def test_lists_are_copied_in_and_the_bundle_keeps_its_file(tmp_path: Path) -> None:
    sst = tmp_path / "lists.sst"
    lists: dict[str, NDArray[Any]] = {
        "u:ä": np.array([3, 1, 2], np.int32),
        "i:7": np.array([9], np.int64),
        "u:0": np.empty(0, np.int32),
    }
    write_lists_sst(sst, lists)
    before = sst.read_bytes()
    stores = [ListStore(tmp_path / name, sst) for name in ("a", "b")]
    for store in stores:
        found = {key: store.rows(key) for key in lists}
        assert {key: rows.tolist() for key, rows in found.items() if rows is not None} == {
            "u:ä": [3, 1, 2],
            "i:7": [9],
            "u:0": [],
        }
        assert store.rows("u:7") is None
    for store in stores:
        store.close()
    assert sst.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.sst"]


def test_a_damaged_list_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lists.sst").write_bytes(b"no sst" * 100)
    with pytest.raises(BundleError, match="SST"):
        ListStore(tmp_path / "store", tmp_path / "lists.sst")
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="no lists"):
        write_lists_sst(tmp_path / "empty.sst", {})


def test_a_leftover_folder_of_a_dead_replica_is_cleared(tmp_path: Path) -> None:
    first = AnswerCache(tmp_path / "answers", 5_000_000)
    first.put(b"k", b"old", 60.0)
    del first
    (tmp_path / "other").mkdir()
    again = AnswerCache(tmp_path / "other", 5_000_000)
    assert again.get(b"k") is None
    again.close()


def test_answers_expire_and_take_bounded_disk(tmp_path: Path) -> None:
    now = [0.0]
    cache = AnswerCache(tmp_path / "answers", 12_000_000, clock=lambda: now[0])
    cache.put(b"key", b"answer", 5.0)
    assert cache.get(b"key") == b"answer"
    now[0] = 5.0
    assert cache.get(b"key") is None
    assert (cache.hits, cache.misses) == (1, 1)
    random = np.random.default_rng(0)
    for number in range(20_000):
        cache.put(b"%d" % number, random.bytes(2000), 60.0)
    held = sum(path.stat().st_size for path in (tmp_path / "answers").iterdir())
    assert held < 20_000_000  # of 40 MB written
    assert cache.get(b"19999") is not None
    cache.close()


def test_without_room_there_is_no_cache_for_a_while_and_then_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no folder").write_text("so that nothing can be opened below")
    clock = [1000.0]
    cache = AnswerCache(tmp_path / "no folder" / "answers", 5_000_000, clock=lambda: clock[0])
    assert cache.get(b"k") is None
    cache.put(b"k", b"v", 60)
    assert cache.get(b"k") is None
    assert caplog.text.count("not cached for 10 s") == 1
    (tmp_path / "no folder").unlink()
    clock[0] += 10
    cache.put(b"k", b"v", 60)
    assert cache.get(b"k") == b"v"

    class Full:
        """A store whose disk is full."""

        def put(self, *_: object) -> None:
            raise OSError("No space left on device")

        def close(self) -> None:
            raise OSError("Writer has previous error")

    cache._store = Full()
    cache.put(b"other", b"v", 60)
    assert cache.get(b"k") is None
    assert not (tmp_path / "no folder" / "answers").exists()  # its room is others' now
    clock[0] += 10
    cache.put(b"k", b"w", 60)
    assert cache.get(b"k") == b"w"
    cache.close()
