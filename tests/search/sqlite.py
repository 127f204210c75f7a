"""The values of a sqlite database: long ones lie in pieces on several pages, where their bytes cannot be found."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

SQLITE = b"SQLite format 3\0"
_WAL_VERSIONS = slice(18, 20)  # 2 in both: changes lie in a file beside, which memory has none of


def sqlite_values(data: bytes) -> Iterator[bytes]:
    """Every text and blob of every table. What is deleted and still lies on free pages, the raw bytes show."""
    plain = bytearray(data)
    plain[_WAL_VERSIONS] = b"\x01\x01"
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(bytes(plain))
        database.text_factory = bytes
        tables = [name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                yield from (value for value in row if isinstance(value, bytes))
