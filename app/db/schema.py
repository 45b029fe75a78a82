"""Migrations: bring the database to the schema of the code, with the Alembic revisions in migrations/.

Alembic is imported only when there is a migration to run: it adds more than half to the time that a start spends on
imports.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.db.database import MIGRATIONS as MIGRATIONS
from app.db.database import SCHEMA_REVISION, Database
from app.db.dialect import Trouble, unavailable
from app.errors import DatabaseUnavailable, DatabaseUnusable, SchemaBehind


def prepare(database: Database) -> None:
    """At every start: a database file is brought up to date; a server's database must be so already.

    Raises SchemaBehind, SchemaAhead, DatabaseUnusable, and for a server DatabaseUnavailable.
    """
    if database.dialect.file is None:
        try:
            database.check_schema()
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, DatabaseUnusable):
                raise error.__cause__ from None
            raise
        return
    try:
        try:
            database.check_schema()
        except SchemaBehind:
            upgrade(database)
    except (DatabaseUnavailable, DBAPIError, OSError) as error:
        reason = error.reason if isinstance(error, DatabaseUnavailable) else getattr(error, "orig", error)
        raise DatabaseUnusable(
            f"{database.url.database} can't be used as the database: {reason}; set DATABASE_URL to another file, or "
            "see to this one, whose folder must be writable too"
        ) from error


def absence(database: Database) -> str | None:
    """Where a SQLite database was never made, words that say so, with the cure; else None.

    A start makes it. A command that looks does not: its shell may lack the service's settings, and with an empty
    database nothing is wrong.
    """
    file = database.dialect.file
    try:
        if file is None or (file.exists() and database.schema_revision() is not None):
            return None
    except DatabaseUnavailable:  # it is there, and what is wrong with it is told when it is used
        return None
    return (
        f"there is no database at {file} yet: the service's start makes it, or 'flask db upgrade'; where the service "
        "runs already, set INSTANCE_PATH or DATABASE_URL in this shell as it has them"
    )


def upgrade(database: Database) -> None:
    """Run the revisions that are missing, each at most once however many processes do this at the same time.

    They are one transaction. Where a service that runs locks the same tables in another order, the server may end it as
    the victim of a deadlock: it is run again, for ``database.timeout`` seconds.

    Raises SchemaAhead or SchemaBehind when that can't be, DatabaseUnavailable when there is no database.
    """
    from alembic import command

    until = time.monotonic() + database.timeout
    while True:
        try:
            with migrating(database) as config:
                command.upgrade(config, "head")
            return
        except DatabaseUnavailable as error:
            cause = error.__cause__
            if cause is None or database.dialect.trouble(cause) is not Trouble.MOMENT or time.monotonic() > until:
                raise


def check(database: Database) -> None:
    """Raises SchemaBehind when models and migrations differ, or as ``check_schema`` does."""
    from alembic import command

    with migrating(database) as config:
        command.check(config)


def make_revision(message: str, *, empty: bool = False) -> Path | None:
    """Write the next migration: from the newest one to the models, or without steps when it is to be ``empty``.

    Compares on a new SQLite file, so the service's own database need not be there. Returns the migration's file; None
    when models and migrations agree, and so nothing was written.
    """
    from alembic import command

    following = f"{int(SCHEMA_REVISION) + 1:04}"
    with tempfile.TemporaryDirectory() as folder, closing(Database(f"sqlite:///{folder}/schema.db")) as scratch:
        upgrade(scratch)
        with migrating(scratch) as config:
            made: Any = command.revision(
                config,
                message,
                autogenerate=not empty,
                rev_id=following,
                process_revision_directives=_leave_out_what_is_empty,
            )
    return Path(made.path) if made else None


def _leave_out_what_is_empty(_: Any, __: Any, revisions: list[Any]) -> None:
    """Called by Alembic with what it found to differ, before it writes a file."""
    if revisions[0].upgrade_ops.is_empty():
        revisions.clear()


@contextmanager
def migrating(database: Database) -> Iterator[Any]:
    """For Alembic's commands: their configuration, on a connection that no other process migrates beside.

    Raises SchemaAhead, or SchemaBehind for what Alembic complains of, DatabaseUnavailable when there is no database.
    """
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(cmd_opts=Namespace(quiet=True))  # it would print what it does
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    try:
        with database.dialect.exclusive(database.timeout) as connection:
            config.attributes["connection"] = connection
            yield config
    except CommandError as error:
        database.check_schema()  # of a revision that it does not know, Alembic says no more than that
        raise SchemaBehind(str(error)) from error
    except DBAPIError as error:
        if not database.dialect.is_transient(error):
            raise
        raise unavailable(database.dialect, error) from error
