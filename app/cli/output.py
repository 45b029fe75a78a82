"""Terminal output: every line of a command is printed here, with its control characters replaced.

Mail servers, clients, operators and exceptions choose much of what a command shows. An escape sequence in it would
colour, move or rename the reader's terminal.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from app.db import iso
from app.text import printable

MISSING = "–"


def line(text: str = "") -> None:
    """Print one line. A line break in ``text`` is a control character too."""
    click.echo(printable(text))


def record(row: Any) -> None:
    """Print a row of a table, a line for each column."""
    for column in row.__table__.columns:
        line(f"{column.name:<14} {shown(getattr(row, column.name))}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows under their columns' names, aligned; ``empty`` where there is no row."""
    if not rows:
        line(empty)
        return
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line("  ".join(map(str.ljust, row, widths)).rstrip())


def shown(value: Any) -> str:
    """A value as people read it: times in ISO 8601, a missing value as a dash."""
    if value is None:
        return MISSING
    return iso(value) if isinstance(value, datetime) else str(value)


def printable_lines(text: str) -> str:
    """Printable, line by line: the line breaks of a message from Click stay."""
    return "\n".join(map(printable, text.split("\n")))
