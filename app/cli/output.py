"""Terminal output: every line of a command is printed here, with its control characters replaced.

Mail servers, clients, operators and exceptions choose much of what a command shows. An escape sequence in it would
colour, move or rename the reader's terminal.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import click

from app.db import iso
from app.text import printable

MISSING = "–"


def _keep(context: click.Context, option: click.Parameter, is_given: bool) -> None:
    context.meta[f"{__name__}.{option.name}"] = is_given


def _is_given(option: str) -> bool:
    return bool(click.get_current_context().meta.get(f"{__name__}.{option}"))


json_option = click.option(
    "--json", "as_json", is_flag=True, expose_value=False, callback=_keep, help="Print JSON, for programs."
)
"""Decorator: the option of every command that ends by itself. A command tells its result twice, by ``document``, and by
``line`` and its kin for people: with --json the one prints all that is on stdout, without it the others do."""

yes_option = click.option("--yes", is_flag=True, expose_value=False, callback=_keep, help="Do not ask.")
"""Decorator: the option of every command that asks before it acts."""


def is_json() -> bool:
    """Whether the running command was given --json."""
    return _is_given("as_json")


def line(*texts: str) -> None:
    """Print each text as one line, unless as JSON. A line break in it is a control character too."""
    if not is_json():
        for text in texts:
            click.echo(printable(text))


def confirm(question: str) -> None:
    """Ask on stderr, unless --yes is given: stdout has the result alone. Raises Abort where the answer is no."""
    if _is_given("yes"):
        return
    try:
        click.confirm(printable(question), abort=True, err=True)
    finally:
        if not sys.stdin.isatty():  # an answer from a pipe is not seen, nor is the end of its line
            click.echo(err=True)


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
    """A value as people read it: times in ISO 8601, names between commas, a missing value as a dash."""
    if value is None:
        return MISSING
    if isinstance(value, tuple):
        return ", ".join(value)
    return iso(value) if isinstance(value, datetime) else str(value)


def document(value: Any) -> None:
    """Print one JSON document where --json asks for it, in ASCII: no control character of a foreign text reaches the
    terminal."""
    if is_json():
        click.echo(json.dumps(value, default=_jsonable, ensure_ascii=True))


def _jsonable(value: Any) -> Any:
    """Times in ISO 8601, decimals as they are written, a dataclass as an object."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Decimal):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
