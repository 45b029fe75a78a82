"""Base of all commands: a Click group that prints expected errors as one line, and the commands' access to the app."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import click
from flask import current_app
from flask.cli import AppGroup

from app.bus import Bus
from app.cli import output
from app.db import Database
from app.errors import AppError, DatabaseUnavailable


class Group(AppGroup):
    """Group of commands. An AppError becomes Click's one-line error and exit code 1."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **kwargs: Any) -> click.Context:
        with printable_errors():
            for word in args:
                _check_is_text(word)
            return super().make_context(info_name, args, *more, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with printable_errors(), one_line_errors():
            return super().invoke(ctx)


def _check_is_text(word: str) -> None:
    """Raises UsageError for bytes that are no text: no database takes them, as a filter or as a value."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{word!r} is not UTF-8; write it in the encoding of this terminal's locale") from None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Raises ClickException for an AppError."""
    try:
        yield
    except DatabaseUnavailable as error:
        raise click.ClickException(f"{error} ({error.reason})") from error
    except AppError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def printable_errors() -> Iterator[None]:
    """Makes the message of a ClickException printable: Click repeats the words that were typed, raw."""
    try:
        yield
    except click.ClickException as error:
        error.message = output.printable_lines(error.message)  # type: ignore[misc]  # Final, but only we hold it
        raise


def any_database() -> Database:
    """The database, whatever its schema."""
    return cast(Database, current_app.extensions["database"])


def database() -> Database:
    """The database, its schema checked. Raises SchemaBehind, which says what to run."""
    found = any_database()
    found.check_schema()
    return found


def bus() -> Bus:
    """The bus, once the schema is checked. Raises SchemaBehind."""
    database()
    return cast(Bus, current_app.extensions["bus"])
