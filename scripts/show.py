"""What commands print: results on stdout, as JSON or as tables; progress on stderr."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def say(line: str) -> None:
    """A line about what is going on, on stderr."""
    print(f"manta: {line}", file=sys.stderr, flush=True)


def as_json(result: Any) -> None:
    """The result as one JSON document on stdout."""
    print(json.dumps(result, indent=2, ensure_ascii=False, default=str), flush=True)


def facts(result: Mapping[str, Any]) -> None:
    """One `key  value` line each; a nested mapping on one line."""
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        print(f"{key:{width}}  {_cell(value)}")


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Rows as a table with these columns, or the line `empty` where there are none."""
    found = list(rows)
    if not found:
        print(empty)
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in found:
        shown.add_row(*(_cell(row.get(column)) for column in columns))
    console = Console()
    if not console.is_terminal:  # a pipe gets whole lines, however wide
        console = Console(width=400)
    console.print(shown)


class Bar:
    """A progress bar on stderr; without a terminal nothing is drawn."""

    def __init__(self, drawn: Progress, title: str) -> None:
        self._drawn = drawn
        self._tasks: dict[str, TaskID] = {}
        self._title = title

    def __call__(self, done: int) -> None:
        """So much of an unknown whole is done."""
        self.topic(self._title, done, None)

    def topic(self, name: str, done: int, total: int | None) -> None:
        """So much of one part is done."""
        if name not in self._tasks:
            self._tasks[name] = self._drawn.add_task(name, total=total)
        self._drawn.update(self._tasks[name], completed=done, total=total)


@contextmanager
def progress(title: str) -> Iterator[Bar]:
    """A progress bar while the block runs."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as drawn:
        yield Bar(drawn, title)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_cell(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(inner) for inner in value) or "-"
    return str(value)
