"""What `manta import` reads, from the words of its command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import SettingsError

if TYPE_CHECKING:
    from app.events.import_sources import LastValues, Source

COMMAND = "manta import"


def source_of(path: str, table: str, query: str, since: str, last: "LastValues") -> "Source":
    """A file, a folder or an address of an object store; with `--table` or `--query` a database.

    Raises:
        SettingsError: the words contradict each other, or there is no such file.
    """
    from app.events.import_sources import FileSource, SqlSource

    if table and query:
        raise SettingsError(COMMAND, "--query", query, "either --table or --query")
    if table or query:
        source = SqlSource(path, table=table, query=query, since=since)
        source.last = last.of(source) if since else None
        return source
    if since:
        raise SettingsError(COMMAND, "--since-column", since, "a database: also --table or --query")
    if "://" not in path and not Path(path).exists():
        raise SettingsError(COMMAND, "PATH", path, "a file or a folder that exists")
    return FileSource(path)


def column_map(words: list[str]) -> dict[str, str]:
    """`--column FROM=TO` words as a map.

    Raises:
        SettingsError: a word of another form, or two columns of one name.
    """
    found: dict[str, str] = {}
    for word in words:
        source, equals, target = word.partition("=")
        if not (source and equals and target):
            raise SettingsError(COMMAND, "--column", word, "FROM=TO")
        if target in found.values():
            raise SettingsError(COMMAND, "--column", word, f"one column alone named {target}")
        found[source] = target
    return found
