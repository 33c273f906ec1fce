"""What a person sees: tables, JSON, progress bars.

Owns: that tables go to standard output and everything else to standard error, and that bars are
drawn only on a terminal. Refuses: what is in them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

WIDE = 10_000
"""Columns of an output that is not a terminal: nothing is cut, whoever reads it."""


def print_json(value: Any) -> None:  # noqa: ANN401 - anything JSON takes
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """One table on standard output; numbers stand on the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        right = bool(rows) and all(isinstance(row[number], int) for row in rows)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else WIDE, highlight=False)
    with console.capture() as shown:
        console.print(table)
    # rich pads each line to the width of the table; what is piped on should not end in blanks.
    for line in shown.get().splitlines():
        click.echo(line if terminal else line.rstrip())


def note(text: str) -> None:
    """A line beside the output proper: on standard error."""
    click.echo(text, err=True)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal that something is under way, for as long as the block takes."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(text):
        yield


def progress(*, shown: bool = True, speed: bool = False) -> Progress:
    """A progress display on standard error; draws nothing where that is no terminal.

    Args:
        shown: False draws nothing at all.
        speed: count bytes, not things.
    """
    count: ProgressColumn = TransferSpeedColumn() if speed else MofNCompleteColumn()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        count,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (shown and sys.stderr.isatty()),
    )
