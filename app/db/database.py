"""The way to the database: one function for all writes, ``transact``; ``read`` and ``look`` for all else."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import TypeVar, cast

from blinker import Signal
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from app.clock import Clock
from app.db.engine import is_passing, make_engine
from app.db.group_commit import Commits, Work
from app.db.prepared import Reader
from app.db.transaction import Rows, Transaction, in_transaction
from app.db.write_queue import Turns
from app.errors import DatabaseUnavailable, NestedTransaction, SchemaBehind

T = TypeVar("T")

SCHEMA_REVISION = "0002"
"""The newest revision in migrations/, known here so that a start need not load Alembic. A test holds it."""

KEPT_WRITERS = 8
"""How many connections are kept ready for the next transactions. SQLite, which has one writer, needs one."""

CROWDED = 0.5
"""Half of the time another process was writing: from here on who is in no hurry lets others go first."""


class Database:
    """The way to the database. ``timeout`` is how many seconds a write may wait for its turn."""

    def __init__(self, url: str, *, clock: Clock | None = None, timeout: float = 10, pool_size: int = 20) -> None:
        self.url = make_url(url)
        self.clock = clock or Clock()
        self.timeout = timeout
        self.committed = Signal(
            "Sent after a commit; the sender is the database, `facts` what each caller's work told."
        )
        self.before_work: Callable[[Transaction], None] | None = None
        """Called before each caller's work, in the context that it runs in."""
        self.engine = make_engine(self.url, timeout, pool_size)
        self._begin_anew()
        self._turns = Turns(Path(self.url.database)) if self.is_sqlite and self.url.database else None
        snapshot = {"sqlite_begin": "DEFERRED"} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        reading = self.engine.execution_options(**snapshot)
        self._reading_session = sessionmaker(reading, expire_on_commit=False)

    def _begin_anew(self) -> None:
        self.commits = Commits(self._once, self.timeout, one_writer=self.is_sqlite)
        self._working = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        self._writers: deque[Connection] = deque()

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @property
    def crowding(self) -> float:
        """How often of late this process found another one writing, from 0 to 1. On PostgreSQL nobody is in the way."""
        return self._turns.crowding if self._turns else 0.0

    def transact(self, work: Callable[[Transaction], T], lock_order: str = "") -> T:
        """Run ``work(session)`` in one write transaction, and return what it returns once that is durable.

        An exception rolls everything back. When the database is busy, gone or has chosen this transaction as the
        victim of a deadlock, or when another's work that shares it fails, the whole ``work`` runs again; so it must
        have no effects but on the session. Works that share a transaction are done in the order of ``lock_order``: who
        locks rows in that order, here and in other processes, makes no deadlock.

        Raises DatabaseUnavailable after ``timeout``, and sooner where the database is stuck and others here wait
        already; NestedTransaction inside another transaction.
        """
        if in_transaction():
            raise NestedTransaction
        mine, done = self.commits.do(work, lock_order)
        if facts := [each.facts for each in done if each.facts and each.error is None]:
            self.committed.send(self, facts=facts)
        if mine.error is not None:
            raise mine.error
        if not mine.done:
            raise RuntimeError("the transaction ended without a commit and without an error")
        return cast(T, mine.result)

    def let_work(self) -> None:
        """Where others queue for the write lock, wait while a transaction of this process is at its statements: each of
        them would give the interpreter away to a thread that has other things to do."""
        if self.crowding > CROWDED:
            with self._working:
                pass

    def _once(self, batch: list[Work]) -> None:
        """One transaction, for the batch and for who has come meanwhile."""
        with self._turns.taken() if self._turns else contextlib.nullcontext(), self._writing() as connection:
            if self.is_sqlite:
                connection.connection.dbapi_connection.execute("BEGIN IMMEDIATE")  # type: ignore[union-attr]
            self.commits.fill(batch)  # now that the write lock is ours
            now = self.clock.now()
            rows: Rows = {}
            with self._working:
                for each in sorted(batch, key=attrgetter("lock_order")):
                    session = Transaction(connection, now, rows)
                    each.do(session, self.before_work)
                session.write_rows()
            self._commit(connection)

    def _commit(self, connection: Connection) -> None:
        transaction = connection.get_transaction()
        if transaction is not None:
            transaction.commit()
        else:  # nothing but prepared statements, of which SQLAlchemy knows nothing
            connection.connection.commit()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A connection for one transaction, kept for the next: a pool's would be asked each time whether it lives."""
        connection: Connection | None = None
        try:
            with contextlib.suppress(IndexError):
                connection = self._writers.pop()
            connection = connection or self.engine.connect()
            yield connection
        except BaseException:
            if connection is not None:
                connection.close()  # which rolls back
            raise
        if len(self._writers) < KEPT_WRITERS:
            self._writers.append(connection)
        else:
            connection.close()  # for others to have

    @contextlib.contextmanager
    def autocommit(self) -> Iterator[Reader]:
        """For prepared queries, each of which sees the database as it is at its moment. Raises DatabaseUnavailable."""
        try:
            connection = self.engine.raw_connection()
            try:
                yield Reader(connection.dbapi_connection, self.engine.dialect)
            finally:
                connection.close()
        except Exception as error:
            if not is_passing(error):
                raise
            raise DatabaseUnavailable from error

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one consistent snapshot that never takes the write lock. Raises DatabaseUnavailable."""
        try:
            with self._reading_session() as session:
                yield session
        except (DBAPIError, PoolTimeout) as error:
            if not is_passing(error):
                raise
            raise DatabaseUnavailable from error

    def check_schema(self) -> None:
        """Raises SchemaBehind when the database is not at the code's revision, DatabaseUnavailable when it is gone."""
        found = self.schema_revision()
        if found is None or found < SCHEMA_REVISION:
            raise SchemaBehind(
                f"the database schema is at {found or 'nothing'}, the code needs {SCHEMA_REVISION}; "
                "did you forget to run 'flask db upgrade'?"
            )

    def schema_revision(self) -> str | None:
        """The revision that the database is at, None when it is empty."""
        try:
            with self.read() as session:
                return session.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except DBAPIError:  # the table is not there
            return None

    def forget_connections(self) -> None:
        """After a fork: the parent's connections are the parent's; the child opens its own.

        The old pool is kept alive: collecting it would close the parent's SQLite connections from here, which
        sqlite.org/howtocorrupt.html (section 2.6) warns of.
        """
        self._inherited = (self.engine.pool, self._writers)
        self._begin_anew()
        if self._turns:
            self._turns.forget()
        self.engine.dispose(close=False)

    def close(self) -> None:
        while self._writers:
            self._writers.pop().close()
        self.engine.dispose()
