"""What SQLite and PostgreSQL do differently: all that the rest of the application may ask about its database.

``sqlite.py`` and ``postgresql.py`` answer, each for one of the two. Nothing outside this folder asks which one it is.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.errors import DatabaseUnavailable


class Listener(Protocol):
    """A connection that hears notifications. ``drain`` and ``fileno`` raise DatabaseUnavailable once it is lost."""

    def fileno(self) -> int: ...

    def drain(self) -> None:
        """Take off the connection what arrived."""

    def close(self) -> None: ...


class Dialect(Protocol):
    """One database, behind its engine."""

    name: str

    engine: Engine

    snapshot: dict[str, Any]
    """The execution options of a connection that reads one consistent snapshot."""

    one_writer: bool
    """Whether all processes share one write lock."""

    @property
    def file(self) -> Path | None:
        """The database's file on this machine; None where a server keeps it."""

    # Transactions

    @property
    def write_contention(self) -> float:
        """How often of late another process held the write lock when this one wanted it, from 0 to 1."""

    def write_queue(self) -> AbstractContextManager[None]:
        """Around a write transaction: where all processes share one write lock, they queue for it here."""

    def begin_write(self, driver: Any) -> None:
        """Begin a write transaction on the driver's connection."""

    def check_commit(self) -> None:
        """After a commit, and before it is acknowledged: raises the driver's error where others won't find it."""

    def after_fork(self) -> None:
        """Let go of what is the parent's."""

    def close(self) -> None:
        """Close what is open; the next use opens it again."""

    def pipeline(self, driver: Any) -> AbstractContextManager[Any]:
        """The block's statements travel together where there is a network between."""

    @staticmethod
    def is_transient(error: BaseException) -> bool:
        """Whether the database is in trouble and the trouble passes; else the statement is wrong."""

    def is_disk_trouble(self, error: BaseException) -> bool:
        """Whether the disk is full or fails, which does not pass within a request."""

    def cure(self, error: BaseException) -> str | None:
        """What an operator can do about trouble with the database; None where that is not known."""

    def defect(self) -> str | None:
        """A known defect of the version in use, and the cure; None without one."""

    # SQL

    def insert(self, table: Any) -> Any:
        """An INSERT into a table or a model that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""

    def raw_text(self, column: Any) -> Any:
        """A text column in a form that can be read even where the text is damaged: bytes or text."""

    def transaction_id(self) -> Any:
        """The id of the running transaction, for a column that ``in_commit_order`` sorts by."""

    def in_commit_order(self, page: Select[Any], transaction_id: Any, position: Any, after: tuple[int, int]) -> Any:
        """The page's rows as they were committed, from behind ``after``, a (transaction_id, position).

        Rows are left out while a transaction runs that may still commit one before them.
        """

    # Between processes

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
    """What callers are told of the error, which is transient; it is their error's cause."""
    told = DatabaseUnavailable(cure=dialect.cure(error))
    told.__cause__ = error
    return told


def driver_error(error: BaseException) -> BaseException:
    """The driver's error: a prepared statement raises it as it is, SQLAlchemy wraps it."""
    return getattr(error, "orig", None) or error


def is_connection_trouble(error: BaseException) -> bool:
    """Whether no connection could be had, or one broke: of that the drivers give no code."""
    return isinstance(error, PoolTimeout | OperationalError) or type(driver_error(error)).__name__ == "OperationalError"
