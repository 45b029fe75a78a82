"""What SQLite and PostgreSQL do differently: all that the rest of the application may ask about its database.

``sqlite.py`` and ``postgresql.py`` answer, each for one of the two. Nothing outside this folder asks which one it is.
"""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

NO_DEADLINE = contextlib.nullcontext()


class Listener(Protocol):
    """A connection that hears notifications. Its methods raise DatabaseUnavailable once it is lost."""

    def fileno(self) -> int: ...

    def check(self) -> None:
        """Ask the server whether it is there. Notifications that come with the answer make ``fileno`` ready no more."""

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

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """In the block, this thread waits no longer for the database, all in all, where that can be had.

        Then what waits raises an error that is transient. Nobody can give up a disk: SQLite's waits have an end of
        their own, and where the disk hangs they have none.
        """

    def begin_write(self, driver: Any) -> None:
        """Begin a write transaction on the driver's connection."""

    def after_fork(self) -> None:
        """Let go of what is the parent's."""

    def lock_keys(self, driver: Any, keys: Iterable[str]) -> None:
        """Hold the keys until the transaction ends, having waited for others that hold one. A single writer need not.

        It is for transactions that lock several rows of one owner: whoever holds the owner's key first can't meet
        another in the middle.
        """

    def pipeline(self, driver: Any) -> AbstractContextManager[Any]:
        """The block's statements travel together where there is a network between."""

    @staticmethod
    def is_transient(error: BaseException) -> bool:
        """Whether the database is in trouble and the trouble passes; else the statement is wrong."""

    def is_disk_trouble(self, error: BaseException) -> bool:
        """Whether the disk is full or fails, which does not pass within a request."""

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


def driver_error(error: BaseException) -> BaseException:
    """The driver's error: a prepared statement raises it as it is, SQLAlchemy wraps it."""
    return getattr(error, "orig", None) or error


def is_connection_trouble(error: BaseException) -> bool:
    """Whether no connection could be had, or one broke: of that the drivers give no code."""
    kinds = [kind.__name__ for kind in type(driver_error(error)).__mro__]
    return isinstance(error, PoolTimeout | OperationalError) or "OperationalError" in kinds
