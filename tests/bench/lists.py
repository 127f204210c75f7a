"""Precomputed lists: 6.5 M pairs of 32 and 4 bytes taken in as an SST file, against putting them one by one."""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rocksdict import IngestExternalFileOptions, Options, Rdict, SstFileWriter, WriteBatch

PAIRS = 6_500_000
PUT_PAIRS = 500_000
CHECKED = 0.01


def run(pairs: int = PAIRS) -> dict[str, Any]:
    """Seconds to take in and to check 1 % by reading; seconds to write the file; how often faster than puts."""
    with tempfile.TemporaryDirectory(prefix="manta-lists-") as folder:
        file, values = Path(folder) / "lists.sst", np.arange(pairs, dtype="<u4")
        began = time.perf_counter()
        _write(file, values)
        written = time.perf_counter() - began
        began = time.perf_counter()
        store = Rdict(str(Path(folder) / "store"), _options())
        store.ingest_external_file([str(file)], IngestExternalFileOptions())
        taken = time.perf_counter() - began
        chosen = random.Random(0).sample(range(pairs), int(pairs * CHECKED))
        for start in range(0, len(chosen), 10_000):
            some = chosen[start : start + 10_000]
            found = store.get([_key(number) for number in some])
            if [int.from_bytes(value, "little") for value in found] != some:
                raise AssertionError("a list that was taken in does not read as it was written")
        loaded = time.perf_counter() - began
        store.close()
        puts = _puts(Path(folder) / "puts", min(pairs, PUT_PAIRS)) * pairs / min(pairs, PUT_PAIRS)
    return {
        "pairs": pairs,
        "write_file_s": written,
        "take_in_s": taken,
        "take_in_and_check_s": loaded,
        "puts_s": puts,
        "times_faster_than_puts": puts / loaded,
    }


def _write(file: Path, values: "np.ndarray[Any, np.dtype[np.uint32]]") -> None:
    writer = SstFileWriter(_options())
    writer.open(str(file))
    raw = values.tobytes()
    for number in range(len(values)):
        writer[_key(number)] = raw[4 * number : 4 * number + 4]
    writer.finish()


def _puts(folder: Path, pairs: int) -> float:
    """Seconds to put pairs in random order, in batches of a thousand."""
    order = list(range(pairs))
    random.Random(1).shuffle(order)
    store = Rdict(str(folder), _options())
    began = time.perf_counter()
    for start in range(0, pairs, 1000):
        batch = WriteBatch(raw_mode=True)
        for number in order[start : start + 1000]:
            batch.put(_key(number), number.to_bytes(4, "little"))
        store.write(batch)
    store.flush()
    seconds = time.perf_counter() - began
    store.close()
    return seconds


def _key(number: int) -> bytes:
    return b"%032d" % number


def _options() -> Options:
    return Options(raw_mode=True)
