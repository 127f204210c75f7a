"""Rows out of a real S3 server: read as from a disk, and no secret in what is said of them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from app.artifacts import file_system
from app.errors import MantaError
from app.events.import_sources import FileSource
from app.events.importing import import_rows
from app.settings import Settings
from tests.contract.s3 import SECRET, address, s3

__all__ = ["s3"]

NAMES = {"who": "user_id", "what": "item_id", "at": "event_time"}


def read(path: str) -> dict[str, Any]:
    return import_rows(FileSource(path), "events", NAMES, Settings(), dry_run=True)


def test_a_folder_of_s3_is_read_as_one_of_a_disk(s3: str, tmp_path: Path) -> None:
    rows = pa.table({"who": [1, 2, None], "what": ["a", "b", "c"], "at": [1_476_640_644] * 3})
    system, folder = file_system(address(s3, "clicks"))
    with system.open_output_stream(f"{folder}/2026/one.parquet") as file:
        pq.write_table(rows, file)
    with system.open_output_stream(f"{folder}/two.csv.gz") as file:
        pyarrow.csv.write_csv(rows, file)
    found = read(address(s3, "clicks/"))
    assert (found["rows"], found["sent"], found["reasons"]) == (6, 4, {"missing": 2})
    assert read(address(s3, "clicks/2026/one.parquet"))["sent"] == 2


@pytest.mark.parametrize(("folder", "secret"), [("nothing/here", SECRET), ("clicks", "wrong-secret")])
def test_what_cannot_be_read_is_one_line_without_the_secret(folder: str, secret: str, s3: str) -> None:
    with pytest.raises(MantaError, match="import: s3://") as refused:
        read(address(s3, folder).replace(SECRET, secret))
    assert secret not in str(refused.value)
    assert "\n" not in str(refused.value)
