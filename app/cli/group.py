"""Base of all commands: a Click group that prints expected errors as one line, and the commands' access to the app."""

import contextlib
import getpass
import os
from collections.abc import Iterator
from typing import Any

import click
from flask.cli import AppGroup

from app import current
from app.bus import Bus
from app.db import Database, schema
from app.errors import AppError, DatabaseUnavailable, SchemaBehind
from app.text import printable


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
    """Makes the message of a ClickException printable, but for its line breaks: Click repeats what was typed, raw."""
    try:
        yield
    except click.ClickException as error:
        message = "\n".join(map(printable, error.message.split("\n")))
        error.message = message  # type: ignore[misc]  # Final, but only we hold it
        raise


def database() -> Database:
    """The database; a file that is there is brought up to date first. Raises SchemaBehind where there is none, else as
    schema.prepare() does, which says what to run."""
    found = current.database()
    check_there(found)
    schema.prepare(found)
    return found


def check_there(database: Database) -> None:
    """Raises SchemaBehind where a SQLite database was never made."""
    if absence := schema.absence(database):
        raise SchemaBehind(absence)


def operator() -> str:
    """The author that an act is recorded with: the operating system's user."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container may run as a user without a name
        return f"cli:{os.getuid()}"


def bus() -> Bus:
    """The bus, once the schema is checked. Raises as database() does."""
    database()
    return current.bus()
