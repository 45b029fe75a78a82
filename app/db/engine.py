"""The two databases: how connections to them are set up, and what their errors mean.

SQLite runs in WAL mode with ``synchronous=FULL``: an acknowledged commit survives power loss. PostgreSQL runs as it
is set up.
"""

import contextlib
import importlib
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import DatabaseUnavailable, DatabaseUnusable

FIXED_SQLITE = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""Versions from which on their branch is free of the WAL-reset bug (sqlite.org/wal.html)."""

POSTGRESQL_OPTIONS = "-c lock_timeout={} -c idle_in_transaction_session_timeout=60000"
"""Milliseconds. The second one frees what a process holds that was stopped in the middle of a transaction."""

LOCK_SECONDS = 2.0
"""How long a statement waits for a row on PostgreSQL. Then what shared the transaction is done each for itself, so that
a row which somebody keeps locked holds up those only who want it; these ask again. It is more than the second after
which PostgreSQL looks for deadlocks, for that chooses one victim, and this none."""

BUSY_SECONDS = 1.0
"""How long SQLite waits for the write lock before it is asked again."""


def make_engine(url: URL, timeout: float, pool_size: int) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_timeout=timeout,
            connect_args={
                "connect_timeout": max(2, int(timeout)),
                "tcp_user_timeout": int(timeout * 1000),  # a network that went dead is an error in time, too
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "options": POSTGRESQL_OPTIONS.format(int(min(timeout, LOCK_SECONDS) * 1000)),
            },
        )
    if url.database:
        folder = Path(url.database).parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnusable(
                f"the folder {folder} can't be made: {error.strerror}; set INSTANCE_PATH, or DATABASE_URL, to a place "
                "that can be written to"
            ) from error
        with contextlib.suppress(OSError):  # where it can't be made, SQLite tells why
            Path(url.database).touch(mode=0o600, exist_ok=False)  # SQLite's own files beside it take its mode over
    engine = create_engine(url, module=sqlite_module(), hide_parameters=True, pool_size=pool_size, pool_timeout=timeout)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where "begin" below says, not where the driver guesses
        _set_pragmas(connection, timeout)

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # A read transaction that turns to writing fails at once with BUSY_SNAPSHOT: writers begin as writers.
        if not connection.connection.dbapi_connection.in_transaction:  # by transact()
            connection.exec_driver_sql("BEGIN " + connection.get_execution_options().get("sqlite_begin", "IMMEDIATE"))

    return engine


def _set_pragmas(connection: Any, timeout: float) -> None:
    """Set what durability depends on, and read it back: SQLite ignores what it can't do without a word."""
    wanted = {
        "busy_timeout": int(min(timeout, BUSY_SECONDS) * 1000),
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
    }
    for name, value in wanted.items():
        connection.execute(f"PRAGMA {name}={value}")
        found = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if found != value:
            raise DatabaseUnavailable(
                f"SQLite refuses PRAGMA {name}={value} (it stays {found!r}); is the database on a network drive?"
            )


def sqlite_module() -> ModuleType:
    """The driver: pysqlite3, which carries its own recent SQLite, else the standard library's."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return sqlite3


def sqlite_is_safe() -> bool:
    """Whether the SQLite in use is free of the WAL-reset bug."""
    found = sqlite_module().sqlite_version_info
    newest = FIXED_SQLITE[0]
    return found >= newest or any(found[:2] == fixed[:2] and found >= fixed for fixed in FIXED_SQLITE)


PASSING_STATES = {"40001", "40P01", "55P03", "53300", "53400", "57014", "57P01", "57P02", "57P03", "53100", "53200"} | {
    "25P03",
    "57P05",
}
"""SQLSTATEs that pass: serialization, deadlock, lock timeout, too many connections, shutdown, disk or memory full; and
that the server has ended the transaction of a process that was stopped in it (see POSTGRESQL_OPTIONS)."""

PASSING_SQLITE = {5: "BUSY", 6: "LOCKED", 10: "IOERR", 13: "FULL", 14: "CANTOPEN", 15: "PROTOCOL", 8: "READONLY"}
"""Primary result codes of SQLite that pass (sqlite.org/rescode.html)."""


def is_passing(error: Exception) -> bool:
    """Whether the trouble is the database's and passes, rather than a fault of the statement."""
    if isinstance(error, PoolTimeout):
        return True
    cause = getattr(error, "orig", error)  # a prepared statement raises the driver's own
    if (state := getattr(cause, "sqlstate", None)) is not None:
        return state in PASSING_STATES or state.startswith("08")
    if (code := getattr(cause, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in PASSING_SQLITE
    return isinstance(error, OperationalError) or type(cause).__name__ == "OperationalError"


def is_full(error: Exception) -> bool:
    """Disk trouble does not pass within a request: say so at once."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (8, 10, 13)
