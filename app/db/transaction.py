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
from app.errors import OutsideTransaction

T = TypeVar("T")


class Transaction(Session):
    """A session inside the one write transaction that ``Database.transact`` opened for it.

    Others' work may be part of the same transaction. So it ends by itself, and what the session does lies in savepoints
    of its own.
    """

    def __init__(self, connection: Connection, now: datetime) -> None:
        """Most work needs prepared statements alone, so what a Session consists of is made when it is first used."""
        self.now = now
        """When the transaction began, by the injected clock."""
        self.facts: dict[str, Any] = {}
        """What listeners to ``Database.committed`` should know; forgotten when the transaction rolls back."""
        self.driver: Any = connection.connection.dbapi_connection
        """The driver's own connection, for prepared statements."""
        self.dialect = connection.dialect
        self._made_on: Connection | None = connection

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: the first time, all that a Session consists of."""
        connection = vars(self).get("_made_on")
        if connection is None:
            raise AttributeError(f"a transaction has no {name!r}")
        self._made_on = None
        super().__init__(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        return getattr(self, name)

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
        if not self.bind.in_transaction():
            self.bind.begin()
        return self.bind

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """What is done in the block stays or goes as one: an exception undoes it, and is passed on."""
        self.write_out()
        self.driver.execute("SAVEPOINT part")
        try:
            yield
            self.write_out()
        except Exception:
            if self.is_used:
                super().rollback()
            self.driver.execute("ROLLBACK TO SAVEPOINT part")
            self.driver.execute("RELEASE SAVEPOINT part")
            raise
        self.driver.execute("RELEASE SAVEPOINT part")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Prepared statements in the block go to PostgreSQL in one packet; no result of theirs may be looked at."""
        with self.driver.pipeline() if on_postgresql(self) else contextlib.nullcontext():
            yield

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


def within(transaction: Transaction, work: Callable[[Transaction], T]) -> T:
    """Do the work as the running transaction's, and write out what its session holds."""
    _current.set(transaction)
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
