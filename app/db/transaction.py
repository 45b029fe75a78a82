"""The transaction that a work receives: prepared statements run on it, and it has a SQLAlchemy session."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from app.db.dialect import Dialect
from app.db.prepared import Prepared
from app.errors import TransactionLost

T = TypeVar("T")


class FirstRow(NamedTuple):
    """A row that a work begins with. One statement inserts those of all works that share a transaction."""

    insert: Prepared
    """Returns the ``key`` of each row that is new, and leaves out the others."""
    key: str
    row: dict[str, Any]


class Postponed:
    """Writes that the works of a shared transaction leave for its end."""

    def __init__(self) -> None:
        self.rows: dict[Prepared, list[dict[str, Any]]] = {}
        """Rows to be inserted, by their INSERT, in the order in which these were first used."""
        self.writes: list[tuple[str, Callable[[], object]]] = []
        """Writes that lock rows, each with the key of its row."""

    def clear(self) -> None:
        self.rows.clear()
        self.writes.clear()


class Transaction:
    """One caller's part of a write transaction, which others' works may share. It commits when all of them are done.

    A work that raises is undone with the whole transaction, and the other works run again.
    """

    def __init__(
        self, connection: Connection, driver: Any, dialect: Dialect, now: datetime, postponed: Postponed
    ) -> None:
        """``postponed`` is that of all works that share the transaction."""
        self.now = now
        """When the transaction began, by the injected clock."""
        self.is_new: bool | None = None
        """Whether the work's first row was new, and is inserted; None where the work has to insert it."""
        self.facts: dict[str, Any] = {}
        """Facts for ``Database.on_commit``; dropped when the transaction rolls back."""
        self.dialect = dialect
        self.driver = driver
        """The driver's connection, for prepared statements."""
        self._connection = connection
        self._postponed = postponed
        self._session: WorkSession | None = None

    @property
    def session(self) -> Session:
        """A SQLAlchemy session in the transaction, made when it is first asked for: most works need none."""
        if self._session is None:
            self._session = WorkSession(self._connection, self.dialect, self.write_postponed)
        return self._session

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """The block's writes stay or go together: an exception undoes them, and is passed on.

        Raises TransactionLost where it can't be undone by itself: the whole transaction has to be run again.
        """
        self.flush()
        self.write_postponed()
        self.driver.execute("SAVEPOINT part")
        try:
            yield
            self.flush()
            self.write_postponed()
        except BaseException as error:  # SystemExit from a receiver, say: its thread goes on with the transaction
            self._postponed.clear()
            with self._or_lost(error):
                if self._session is not None:
                    self._session.undo()
                self.driver.execute("ROLLBACK TO SAVEPOINT part")
                self.driver.execute("RELEASE SAVEPOINT part")
            raise
        with self._or_lost():
            self.driver.execute("RELEASE SAVEPOINT part")

    @contextlib.contextmanager
    def _or_lost(self, why: BaseException | None = None) -> Iterator[None]:
        """Raises TransactionLost where the block fails, for the savepoint is gone then, and the whole transaction with
        it: the connection broke, or SQLite has rolled back by itself. On it the next statement would stand alone."""
        try:
            yield
        except Exception as error:
            raise TransactionLost from why or error

    def add_row(self, statement: Prepared, row: dict[str, Any]) -> None:
        """Insert the row by a prepared INSERT, later: one statement inserts the rows of all works that share the
        transaction. It runs when the transaction or the savepoint ends, or the session asks the database."""
        self._postponed.rows.setdefault(statement, []).append(row)

    def postpone(self, lock_order: str, write: Callable[[], object]) -> None:
        """Call ``write`` when the added rows have been inserted. It locks the row of that key.

        A work that has locked one row and then locks another postpones the second: all works that share the transaction
        lock their first rows in one order, and then their second rows in one order, so that they cause no deadlock.
        ``write`` runs without the work's context, so it sends no signal.
        """
        self._postponed.writes.append((lock_order, write))

    def write_postponed(self) -> None:
        """Insert the added rows, and call the postponed writes, now."""
        if self._postponed.rows:
            inserts = [statement.for_rows(self.dialect, rows) for statement, rows in self._postponed.rows.items()]
            self.dialect.insert_together(self.driver, inserts)
            self._postponed.rows.clear()
        if self._postponed.writes:
            for _, write in sorted(self._postponed.writes, key=itemgetter(0)):
                write()
            self._postponed.writes.clear()

    def flush(self) -> None:
        """Send the session's changes to the database now."""
        if self._session is not None:
            self._session.keep()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


class WorkSession(Session):
    """A session that can't end the transaction it is in: its own changes lie in a savepoint."""

    def __init__(self, connection: Connection, dialect: Dialect, before_statement: Callable[[], None]) -> None:
        if not connection.in_transaction():  # the driver is; SQLAlchemy learns of it here
            connection.begin()
        super().__init__(
            connection,
            expire_on_commit=False,
            join_transaction_mode="create_savepoint",
            info={"dialect": dialect},
        )
        self._before_statement = before_statement

    def get_bind(self, *_: Any, **__: Any) -> Connection:
        """The connection; SQLAlchemy asks for it before each statement."""
        self._before_statement()
        assert isinstance(self.bind, Connection)  # noqa: S101 - for the type checker
        return self.bind

    def commit(self) -> None:
        """Raises RuntimeError: the transaction is not the session's to end."""
        raise RuntimeError("db.transact(work) commits by itself once work returns; leave commit() out")

    def rollback(self) -> None:
        """Raises RuntimeError: the transaction is not the session's to end."""
        raise RuntimeError("db.transact(work) rolls back by itself when work raises; leave rollback() out")

    def keep(self) -> None:
        """Flush, and release the savepoint."""
        if self.in_transaction():
            super().commit()

    def undo(self) -> None:
        """Forget all changes since the last ``keep``."""
        if self.in_transaction():
            super().rollback()


_running: ContextVar[bool] = ContextVar("running", default=False)


def in_transaction() -> bool:
    return _running.get()


def run_within(
    transaction: Transaction, work: Callable[[Transaction], T], before: Callable[[Transaction], None] | None
) -> T:
    """Run the work in the transaction, and flush its session."""
    _running.set(True)
    try:
        if before is not None:
            before(transaction)
        result = work(transaction)
        transaction.flush()
        return result
    finally:
        transaction.close()
        _running.set(False)
