"""What work is given: a session inside a write transaction that it may share with others' work."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.columns import Base
from app.db.prepared import Prepared
from app.errors import OutsideTransaction

T = TypeVar("T")
Rows = dict[Prepared, list[dict[str, Any]]]
"""What is to be inserted, by the statement that does it, in the order in which these were first used."""


class Transaction(Session):
    """A session inside the one write transaction that ``Database.transact`` opened for it.

    Others' work may be part of the same transaction. So it ends by itself, and what the session does lies in savepoints
    of its own.
    """

    def __init__(self, connection: Connection, now: datetime, rows: "Rows") -> None:
        """Most work needs prepared statements alone, so what a Session consists of is made when it is first used.

        ``rows`` are those of all who share the transaction.
        """
        self.now = now
        """When the transaction began, by the injected clock."""
        self.facts: dict[str, Any] = {}
        """What listeners to ``Database.committed`` should know; forgotten when the transaction rolls back."""
        self.driver: Any = connection.connection.dbapi_connection
        """The driver's own connection, for prepared statements."""
        self.dialect = connection.dialect
        self._made_on: Connection | None = connection
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: the first time, all that a Session consists of."""
        connection = vars(self).get("_made_on")
        if connection is None:
            raise AttributeError(f"a transaction has no {name!r}")
        self._made_on = None
        super().__init__(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        return getattr(self, name)

    @property
    def session(self) -> Session:
        """A SQLAlchemy session in the transaction, made when it is asked for."""
        return self

    @property
    def is_used(self) -> bool:
        """Whether something was done through the session, and lies in a savepoint of its own."""
        return self._made_on is None and self.in_transaction()

    def commit(self) -> None:
        """Raises RuntimeError: the transaction is not the session's to end."""
        raise RuntimeError("db.transact(work) commits by itself once work returns; leave commit() out")

    def rollback(self) -> None:
        """Raises RuntimeError: the transaction is not the session's to end."""
        raise RuntimeError("db.transact(work) rolls back by itself when work raises; leave rollback() out")

    def get_bind(self, *_: Any, **__: Any) -> Connection:
        """The connection. SQLAlchemy learns here of the transaction that it is in; prepared statements need no help."""
        assert isinstance(self.bind, Connection)  # noqa: S101 - for the type checker
        self.write_rows()
        if not self.bind.in_transaction():
            self.bind.begin()
        return self.bind

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """What is done in the block stays or goes as one: an exception undoes it, and is passed on."""
        self.write_out()
        self.write_rows()
        self.driver.execute("SAVEPOINT part")
        try:
            yield
            self.write_out()
            self.write_rows()
        except Exception:
            self._rows.clear()
            if self.is_used:
                super().rollback()
            self.driver.execute("ROLLBACK TO SAVEPOINT part")
            self.driver.execute("RELEASE SAVEPOINT part")
            raise
        self.driver.execute("RELEASE SAVEPOINT part")

    def add_row(self, statement: Prepared, row: dict[str, Any]) -> None:
        """Insert the row by a prepared INSERT when the transaction, or the savepoint that one is in, ends, and sooner
        when the session asks the database. All rows that gather until then, be they others', take one statement."""
        self._rows.setdefault(statement, []).append(row)

    def write_rows(self) -> None:
        """Insert what was added. To PostgreSQL it goes in one packet."""
        if self._rows:
            with self.driver.pipeline() if on_postgresql(self) else contextlib.nullcontext():
                for statement, rows in self._rows.items():
                    statement.at_once(self, rows)
            self._rows.clear()

    def write_out(self) -> None:
        """Send what waits in the session to the database, where it joins the transaction."""
        if self.is_used:
            super().commit()


_current: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


def current() -> Transaction:
    """The running transaction. Raises OutsideTransaction."""
    transaction = _current.get()
    if transaction is None:
        raise OutsideTransaction
    return transaction


def in_transaction() -> bool:
    return _current.get() is not None


def within(
    transaction: Transaction, work: Callable[[Transaction], T], before: Callable[[Transaction], None] | None
) -> T:
    """Do the work as the running transaction's, and write out what its session holds."""
    _current.set(transaction)
    if before is not None:
        before(transaction)
    try:
        result = work(transaction)
        transaction.write_out()
        return result
    finally:
        if transaction.is_used:
            transaction.close()
        _current.set(None)


def on_postgresql(session: Session) -> bool:
    dialect = session.dialect if isinstance(session, Transaction) else session.get_bind().dialect
    return dialect.name == "postgresql"


def insert(session: Session, table: type[Base]) -> Any:
    """An INSERT that has ``on_conflict_do_nothing`` and ``on_conflict_do_update`` on this database."""
    dialect = postgresql if on_postgresql(session) else sqlite
    return dialect.insert(table)
