"""Migrations: bring the database to the schema of the code, with the Alembic revisions in migrations/.

Alembic is imported only when there is something to do: it adds more than half to the time that a start spends on
imports.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.db.database import Database
from app.db.dialect import unavailable
from app.errors import DatabaseUnavailable, DatabaseUnusable, SchemaBehind

MIGRATIONS = Path(__file__).resolve().parent.parent.parent / "migrations"


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


def upgrade(database: Database) -> None:
    """Run the revisions that are missing, each at most once however many processes do this at the same time.

    Raises SchemaAhead or SchemaBehind when that can't be, DatabaseUnavailable when there is no database.
    """
    from alembic import command

    with migrating(database) as config:
        command.upgrade(config, "head")


def check(database: Database) -> None:
    """Raises SchemaBehind when models and migrations differ, or as ``check_schema`` does."""
    from alembic import command

    with migrating(database) as config:
        command.check(config)


@contextmanager
def migrating(database: Database) -> Iterator[Any]:
    """For Alembic's commands: their configuration, on a connection that no other process migrates beside.

    Raises SchemaAhead, or SchemaBehind for what Alembic complains of, DatabaseUnavailable when there is no database.
    """
    from alembic.util import CommandError

    try:
        with database.dialect.exclusive(database.timeout) as connection:
            yield _config(connection)
    except CommandError as error:
        database.check_schema()  # of a revision that it does not know, Alembic says no more than that
        raise SchemaBehind(str(error)) from error
    except DBAPIError as error:
        if not database.dialect.is_transient(error):
            raise
        raise unavailable(database.dialect, error) from error


def _config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
