"""Bring the database to the schema of the code, with the Alembic revisions in migrations/.

Alembic is imported only here and only when there is something to do: it adds more than half to the time that a start
spends on imports.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from app.db.database import Database
from app.db.engine import is_passing, sqlite_module
from app.errors import DatabaseUnavailable, DatabaseUnusable, SchemaBehind

MIGRATIONS = Path(__file__).resolve().parent.parent.parent / "migrations"
ADVISORY_LOCK = 7_203_481
"""Any number that nothing else locks on the same PostgreSQL database."""


def prepare(database: Database) -> None:
    """At every start: SQLite is brought up to date; PostgreSQL must be so already. Raises SchemaBehind.

    A PostgreSQL server that can't be reached is no reason not to start: requests are answered 503 until it can.
    """
    if not database.is_sqlite:
        database.check_schema()
        return
    try:
        try:
            database.check_schema()
        except SchemaBehind:
            upgrade(database)
    except (DatabaseUnavailable, DBAPIError, OSError) as error:
        cause = error.__cause__ or error
        raise DatabaseUnusable(
            f"{database.url.database} can't be used as the database: {getattr(cause, 'orig', cause)}; set DATABASE_URL "
            "to another file, or see to this one"
        ) from error


def upgrade(database: Database) -> None:
    """Run the revisions that are missing, each at most once however many processes do this at the same time.

    Raises SchemaBehind when that can't be, DatabaseUnavailable when there is no database.
    """
    from alembic import command

    with _plainly(), _alone(database) as connection:
        command.upgrade(_config(connection), "head")
        if database.is_sqlite and (broken := connection.execute(text("PRAGMA foreign_key_check")).fetchall()):
            raise SchemaBehind(f"the upgrade would leave rows without their parent: {broken[:3]}")


def check(database: Database) -> None:
    """Raises SchemaBehind when models and migrations differ, DatabaseUnavailable when there is no database."""
    from alembic import command

    with _plainly(), _alone(database) as connection:
        command.check(_config(connection))


@contextmanager
def _plainly() -> Iterator[None]:
    """Alembic's complaint, or that of a database that isn't there, as one of ours."""
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:
        raise SchemaBehind(str(error)) from error
    except DBAPIError as error:
        if not is_passing(error):
            raise
        raise DatabaseUnavailable from error


@contextmanager
def _alone(database: Database) -> Iterator[Connection]:
    """A connection in a transaction that nobody else's upgrade can enter."""
    if not database.is_sqlite:
        with database.engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {int(database.timeout * 1000)}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            yield connection
        return
    # A new file switches to WAL without regard to busy_timeout: the first to open it must be alone.
    file = Path(f"{database.url.database}.lock")
    file.touch(mode=0o600)  # nobody else is to hold it
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = create_engine(database.url, module=sqlite_module(), connect_args={"isolation_level": None})
        with engine.begin() as connection:
            # Foreign keys are off here (SQLite's default): a batch migration drops and rebuilds a table, and with them
            # on that would delete the rows that point to it. upgrade() checks them at the end.
            for statement in (
                "PRAGMA busy_timeout=30000",
                "PRAGMA journal_mode=wal",
                "PRAGMA synchronous=FULL",
                "BEGIN IMMEDIATE",
            ):
                connection.exec_driver_sql(statement)
            yield connection
        engine.dispose()


def _config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
