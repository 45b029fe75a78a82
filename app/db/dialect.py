"""The dialect: what SQLite and PostgreSQL do differently, behind one base class.

``sqlite.py`` and ``postgresql.py`` extend it; each inherits what only the other one has to do. Nothing outside this
folder asks which one it is.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import DisconnectionError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.db.listener import Listener
from app.db.postgresql_health import Connections
from app.errors import DatabaseUnavailable, DatabaseUnusable, TransactionLost

CONNECTION_BROKE = "8s2b"
"""SQLAlchemy's code of an error that follows from a connection that broke earlier in the transaction."""


class Trouble(Enum):
    """The kind of a database error, for the transaction that met it. Each dialect has one table from codes to these."""

    STATEMENT = "the statement, or a value in it, is at fault: tried again it fails again"
    MOMENT = "others were in the way: the transaction is run again, on the same connection"
    SERVER = "the database is at fault: the transaction is run again, on a new connection"
    LASTING = "as SERVER, but somebody has to mend it: it does not pass within a request"


PASSING = frozenset({Trouble.MOMENT, Trouble.SERVER, Trouble.LASTING})
"""It is nobody's fault, and ends without anybody changing the statement."""

CONDEMNING = frozenset({Trouble.SERVER, Trouble.LASTING})
"""The connection that met it is used no more, nor are those that lie idle: they may all lead to a server that has
stopped writing, or to a file that was replaced."""

NO_DEADLINE = contextlib.nullcontext()


class Unanswered(Exception):
    """An answer did not come in time. It says nothing of the trouble, which an error before it may have told."""


class Dialect:
    """One database, behind its engine."""

    name: str

    engine: Engine

    snapshot: dict[str, Any]
    """The execution options of a connection that reads one consistent snapshot."""

    autocommit: dict[str, Any]
    """The execution options of a connection on which each query stands alone."""

    one_writer: bool
    """Whether all processes share one write lock."""

    file: Path | None = None
    """The database's file on this machine; None where a server keeps it."""

    # Transactions

    @property
    def write_contention(self) -> float:
        """How often of late another process held the write lock when this one wanted it, from 0 to 1."""
        return 0.0

    def write_queue(self) -> AbstractContextManager[None]:
        """Around a write transaction: where all processes share one write lock, they queue for it here."""
        return contextlib.nullcontext()

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """In the block, this thread waits no longer for the database, all in all, where that can be had.

        Then what waits raises an error that is transient. Nobody can give up a disk: SQLite's waits have an end of
        their own, and where the disk hangs they have none.
        """
        return NO_DEADLINE

    @abstractmethod
    def begin_write(self, driver: Any) -> None:
        """Begin a write transaction on the driver's connection."""

    def check_file(self) -> None:
        """Before each use, and after a commit, before it is acknowledged: raises the driver's error where the
        database's file is no longer at its path, so that others won't find what is written."""

    def after_fork(self) -> None:
        """Let go of what is the parent's."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open; the next use opens it again."""

    def lock_keys(self, driver: Any, keys: Iterable[str]) -> None:
        """Hold the keys until the transaction ends, having waited for others that hold one. A single writer need not.

        It is for transactions that lock several rows of one owner: whoever holds the owner's key first can't meet
        another in the middle.
        """

    def try_lock_keys(self, driver: Any, keys: Iterable[str]) -> set[str]:
        """Those of the keys that could be had at once; they are held until the transaction ends. A key that shares its
        hash with another may be refused. A single writer has them all."""
        return set(keys)

    def lock_table(self, driver: Any, table: str) -> None:
        """Wait for the transactions that have locked rows of the table, and keep others from doing so until this one
        ends. Reading goes on. A single writer need not."""

    @abstractmethod
    def execute(self, driver: Any, sql: str, values: list[Any]) -> Any:
        """Run a prepared statement. Returns the cursor."""

    @abstractmethod
    def insert_together(self, driver: Any, inserts: list[tuple[str, list[Any]]]) -> None:
        """Run these INSERTs, each with its values: as one statement where there is a network between."""

    @abstractmethod
    def trouble(self, error: BaseException) -> Trouble | None:
        """What the error means; None where it is none of this database's: a Python error, or a value that its driver
        refuses before anything is sent. An error that the table does not name counts as SERVER."""

    def is_transient(self, error: BaseException) -> bool:
        """Whether the database is in trouble and the trouble passes."""
        return self.trouble(error) in PASSING

    def cure(self, error: BaseException) -> str | None:
        """An operator's cure for an error of the database; None where none is known."""

    @abstractmethod
    def session_settings(self, session: Session) -> dict[str, str]:
        """The session's settings that the service relies on, as the database reports them."""

    def weaknesses(self, session: Session) -> list[str]:
        """Weaknesses of the server's configuration that break promises, each with its cure."""
        return []

    def connections(self, session: Session) -> Connections | None:
        """How many the service may open, beside how many it can have; None where nothing limits them."""

    @abstractmethod
    def version(self, session: Session) -> str:
        """Of the database in use, with its name."""

    def server_time(self, session: Session) -> datetime | None:
        """By the server's clock; None where the database is on this machine."""

    def defect(self) -> str | None:
        """A known defect of the version in use, and the cure; None without one."""

    # SQL

    @abstractmethod
    def insert(self, table: Any) -> Any:
        """An INSERT into a table or a model that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""

    def raw_text(self, column: Any) -> Any:
        """A text column in a form that can be read even where the text is damaged: bytes or text."""
        return column

    @abstractmethod
    def plus_cents(self, amount: Any, cents: Any) -> Any:
        """The amount with so many cents added to it, exactly."""

    @abstractmethod
    def in_cents(self, amount: Any) -> Any:
        """A Money column in hundredths, as an integer: sums of it are exact."""

    @abstractmethod
    def transaction_id(self) -> Any:
        """The id of the running transaction, for a column that ``in_commit_order`` sorts by."""

    @abstractmethod
    def in_commit_order(self, page: Select[Any], transaction_id: Any, position: Any, after: tuple[int, int]) -> Any:
        """The page's rows as they were committed, from behind ``after``, a (transaction_id, position).

        Rows are left out while a transaction runs that may still commit one before them.
        """

    # Between processes

    @abstractmethod
    def exclusive(self, timeout_seconds: float) -> AbstractContextManager[Connection]:
        """A connection in a transaction that changes the schema; no other process' can run beside it."""

    def notify(self, channel: str) -> None:
        """Tell the channel's listeners on all machines. A database on one machine has none."""

    def listen(self, channel: str) -> Listener | None:
        """Hear what ``notify`` tells; None where the database is on one machine. Raises DatabaseUnavailable."""


def dialect_of(session: Session) -> Dialect:
    """The dialect of the database that a session of ours reads or writes."""
    dialect: Dialect = session.info["dialect"]
    return dialect


def unavailable(dialect: Dialect, error: BaseException) -> DatabaseUnavailable:
    """The error for callers, with the transient ``error`` as its cause."""
    told = DatabaseUnavailable(cure=dialect.cure(error))
    told.__cause__ = error
    return told


def driver_error(error: BaseException) -> BaseException:
    """The driver's error: a prepared statement raises it as it is, SQLAlchemy wraps it."""
    return getattr(error, "orig", None) or error


def trouble_without_code(error: BaseException, driver: ModuleType) -> Trouble | None:
    """The kind of an error that carries no code of the database's."""
    if isinstance(error, PoolTimeout | DisconnectionError | DatabaseUnusable | TransactionLost):
        return Trouble.SERVER
    if isinstance(error, PendingRollbackError) and error.code == CONNECTION_BROKE:
        return Trouble.SERVER
    refusals = (driver.DataError, driver.IntegrityError, driver.NotSupportedError, driver.ProgrammingError)
    found = driver_error(error)
    return Trouble.SERVER if isinstance(found, driver.Error) and not isinstance(found, refusals) else None
