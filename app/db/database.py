"""The way to the database: ``transact`` for all writes, ``read`` and ``query`` for everything else."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, ExceptionContext, event, make_url, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from app.clock import Clock
from app.db.admission import Admission
from app.db.dialect import CONDEMNING, NO_DEADLINE, Dialect, unavailable
from app.db.group_commit import GroupCommit, Work
from app.db.postgresql import PostgreSQL
from app.db.prepared import Prepared, Reader
from app.db.sqlite import SQLite
from app.db.transaction import FirstRow, Postponed, Transaction, in_transaction
from app.errors import DatabaseUnavailable, NestedTransaction, SchemaAhead, SchemaBehind

T = TypeVar("T")

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"

SCHEMA_REVISION = max(file.name[:4] for file in MIGRATIONS.glob("versions/[0-9]*.py"))
"""The newest revision in migrations/, by its files' names: a start need not load Alembic. A test compares them."""

IDLE_CONNECTIONS = 8
"""How many connections are kept ready, at most, for the next transactions, and for the next queries. Of the first,
SQLite, which has one writer, needs one."""


class Database:
    """The way to the database. ``timeout`` is how many seconds a write or a read may wait for it; ``pool_size`` is how
    many connections to PostgreSQL this process has at most, beside a listener's."""

    def __init__(self, url: str, *, clock: Clock | None = None, timeout: float = 10, pool_size: int = 20) -> None:
        self.url = make_url(url)
        self.clock = clock or Clock()
        self.timeout = timeout
        self.on_commit: Callable[[list[dict[str, Any]]], object] | None = None
        """Called after a commit, in the leader's thread, with the Transaction.facts of its works. The bus sets it."""
        self.before_work: Callable[[Transaction], None] | None = None
        """Called before each work, in the context that it runs in. The bus sets it to ``outbox.record_into``, so that
        ``signal.send`` finds the transaction."""
        chosen = SQLite if self.url.get_backend_name() == "sqlite" else PostgreSQL
        self.dialect: Dialect = chosen(self.url, timeout, pool_size)
        self.most_idle = min(IDLE_CONNECTIONS, max(1, pool_size // 4))  # of each kind; as many remain for sessions
        self.generation = 0
        """Of connections: those of an earlier one are used no more."""
        event.listen(self.engine, "connect", self._note_generation)
        event.listen(self.engine, "checkout", self._check_generation)
        event.listen(self.engine, "checkin", self._close_outdated)
        event.listen(self.engine, "handle_error", self._tell_sqlalchemy)
        self._autocommit = self.engine.execution_options(**self.dialect.autocommit)
        reading = self.engine.execution_options(**self.dialect.snapshot)
        self._reading_session = sessionmaker(reading, expire_on_commit=False, info={"dialect": self.dialect})
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.admission = Admission(self.timeout)
        self.group_commit = GroupCommit(self.run_batch, self.dialect, self.admission)
        self._idle_writers: deque[Connection] = deque()
        self._idle_readers: deque[Connection] = deque()
        self.written_at = float("-inf")
        """When this process last committed, by the clock's ``monotonic``."""

    @property
    def engine(self) -> Engine:
        return self.dialect.engine

    @property
    def is_sqlite(self) -> bool:
        return self.dialect.name == "sqlite"

    @property
    def trouble(self) -> DatabaseUnavailable | None:
        """The latest error of the writes that wait; None where the latest write was committed."""
        error = self.group_commit.trouble
        return None if error is None else unavailable(self.dialect, error)

    def transact(
        self,
        work: Callable[[Transaction], T],
        lock_order: str | None = None,
        first: Callable[[datetime], FirstRow] | None = None,
    ) -> T:
        """Run ``work(transaction)`` in one write transaction, and return what it returns once that is durable.

        An exception rolls everything back. ``work`` may run several times: when the database is busy or gone, when
        PostgreSQL ends the transaction to resolve a deadlock, and when another work that shares it fails. So it must
        have no effects outside the transaction.

        ``lock_order`` is the key of the row that the work locks, a unique key that it inserts included. Works that
        share a transaction run in its order, so that they cause no deadlock with those of other processes; what a work
        locks beyond that row, it postpones (Transaction.postpone). On PostgreSQL, a work without one shares none.
        ``first`` makes a row of that key, given the transaction's time. Where works share it, the rows of all of them
        are inserted by one statement before they run, and Transaction.is_new tells what came of each.

        Raises DatabaseUnavailable after ``timeout``, and sooner while the database is stuck and others wait for it;
        NestedTransaction inside another transaction. A work without a lock order may take longer in all, though each
        of PostgreSQL's answers may not. After an error that tells of an answer that did not come, the transaction may
        have been committed: what is done again must be done as if it were the first time.
        """
        if in_transaction():
            raise NestedTransaction
        with NO_DEADLINE if lock_order is None else self.dialect.deadline(self.timeout):
            began = self.admission.admit()
            try:
                mine = Work(work, lock_order, began, first)
                self.group_commit.submit(mine)
                committed = self.group_commit.wait(mine)
            finally:
                self.admission.leave(began)
            self._notify(committed)
        return cast(T, mine.outcome())

    def run_batch(self, take_works: Callable[[], list[Work]]) -> None:
        """One write transaction. The works are taken when it holds the write lock, so that late ones are among them."""
        with self.dialect.write_queue(), Kept(self, self.engine, self._idle_writers) as connection:
            driver: Any = connection.connection.dbapi_connection
            self.dialect.begin_write(driver)
            works = sorted(take_works(), key=lambda work: work.lock_order or "")
            now, postponed = self.clock.now(), Postponed()
            parts = [(work, Transaction(connection, driver, self.dialect, now, postponed)) for work in works]
            if len(parts) > 1:
                _insert_first(parts, now)
            for work, transaction in parts:
                work.run(transaction, self.before_work)
            transaction.write_postponed()
            self.commit(connection)
            self.dialect.check_file()
            self.written_at = self.clock.monotonic()

    def commit(self, connection: Connection) -> None:
        """End the write transaction of ``run_batch``: what it did is durable."""
        if (transaction := connection.get_transaction()) is not None:
            transaction.commit()
        else:  # there were prepared statements only, and SQLAlchemy knows of no transaction
            connection.connection.commit()

    def _notify(self, works: list[Work]) -> None:
        """A leader reports for all whose works it committed: one wake-up for all."""
        facts = [work.facts for work in works if work.facts and work.error is None]
        if facts and self.on_commit is not None:
            self.on_commit(facts)

    def query(self, ask: Callable[[Reader], T]) -> T:
        """Return what ``ask(reader)`` returns, whose prepared queries each see the database as it is at their moment.

        Where a connection proves dead, ``ask`` runs once more, on a new one. Raises DatabaseUnavailable.
        """
        try:
            with self.dialect.deadline(self.timeout):
                try:
                    return self._query(ask)
                except Exception as error:
                    if self.dialect.trouble(error) not in CONDEMNING:
                        raise
                return self._query(ask)
        except Exception as error:
            if not self.dialect.is_transient(error):
                raise
            raise unavailable(self.dialect, error) from error

    def _query(self, ask: Callable[[Reader], T]) -> T:
        with Kept(self, self._autocommit, self._idle_readers) as connection:
            self.dialect.check_file()
            return ask(Reader(connection.connection.dbapi_connection, self.dialect))

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one consistent snapshot that never takes the write lock. Raises DatabaseUnavailable."""
        try:
            with self.dialect.deadline(self.timeout), self._reading_session() as session:
                yield session
        except Exception as error:
            if not self.dialect.is_transient(error):
                raise
            raise unavailable(self.dialect, error) from error

    def condemns(self, error: BaseException) -> bool:
        """Whether the connection that met the error is to be used no more; nor are the idle ones then."""
        if self.dialect.trouble(error) not in CONDEMNING:
            return False
        self.renew_connections()
        return True

    def renew_connections(self) -> None:
        """Use no present connection again: one that is in use is closed when it is returned, and one that lies idle is
        replaced when it is next taken from the pool."""
        self.generation += 1
        for idle in (self._idle_writers, self._idle_readers):
            with contextlib.suppress(IndexError):  # there are no more
                while True:
                    idle.pop().close()

    def _note_generation(self, _: Any, record: ConnectionPoolEntry) -> None:
        record.info["generation"] = self.generation

    def _check_generation(self, _: Any, record: ConnectionPoolEntry, __: Any) -> None:
        if record.info["generation"] != self.generation:
            raise DisconnectionError  # the pool opens another in its place

    def _close_outdated(self, driver: Any, record: ConnectionPoolEntry) -> None:
        if driver is not None and record.info.get("generation") != self.generation:
            record.invalidate()

    def _tell_sqlalchemy(self, context: ExceptionContext) -> None:
        """Called by SQLAlchemy for an error of a statement of its own; it throws the connection away by itself."""
        if context.connection is not None and self.condemns(context.original_exception):
            context.is_disconnect = True

    def check_schema(self) -> None:
        """Raises SchemaBehind or SchemaAhead when the database is not at the code's revision, DatabaseUnavailable when
        it is gone."""
        found = self.schema_revision()
        if found is None or found < SCHEMA_REVISION:
            raise SchemaBehind(
                f"the database schema is at {found or 'nothing'}, the code needs {SCHEMA_REVISION}; "
                "did you forget to run 'flask db upgrade'?"
            )
        if found > SCHEMA_REVISION:
            raise SchemaAhead(
                f"the database schema is at {found}, which is newer than this code, whose schema is {SCHEMA_REVISION}; "
                "start the newer version of the code, or restore a backup from before the upgrade"
            )

    def schema_revision(self) -> str | None:
        """The revision that the database is at, None when it is empty."""
        try:
            with self.read() as session:
                return session.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except DBAPIError:  # the table is not there
            return None

    def hold_file(self) -> None:
        """At a start, open the file of the database, where it is one: 'flask db restore' replaces none that is open.

        Raises DatabaseUnavailable.
        """
        if self.dialect.file is not None:
            self.query(lambda _: None)

    def forget_connections(self) -> None:
        """After a fork: the parent's connections are the parent's; the child opens its own.

        The old pool is kept alive: collecting it would close the parent's SQLite connections from here, which
        sqlite.org/howtocorrupt.html (section 2.6) warns of.
        """
        self._inherited = (self.engine.pool, self._idle_writers, self._idle_readers)
        self._start_afresh()
        self.dialect.after_fork()
        self.engine.dispose(close=False)

    def close(self) -> None:
        """Close the connections that nobody uses; those in use are closed when they are returned."""
        self.renew_connections()
        self.dialect.close()


def _insert_first(parts: list[tuple[Work, Transaction]], now: datetime) -> None:
    """Insert the first rows of the works, in the order in which these run."""
    by_statement: dict[Prepared, list[tuple[FirstRow, Transaction]]] = {}
    for work, transaction in parts:
        if work.first is not None:
            first = work.first(now)
            by_statement.setdefault(first.insert, []).append((first, transaction))
    for insert, rows in by_statement.items():
        new = {key for (key,) in insert.insert_all(rows[0][1], [first.row for first, _ in rows])}
        for first, transaction in rows:
            transaction.is_new = first.row[first.key] in new


class Kept:
    """A connection for the block, kept for the next use: a pool would ask each time whether it lives."""

    def __init__(self, database: Database, engine: Engine, idle: deque[Connection]) -> None:
        """``idle`` are those that lie ready."""
        self._database, self._engine, self._idle = database, engine, idle
        self._generation = database.generation

    def __enter__(self) -> Connection:
        try:
            self._connection = self._idle.pop()
        except IndexError:
            with self._database.dialect.deadline(self._database.timeout):
                self._connection = self._engine.connect()
        return self._connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and self._database.condemns(error):
            self._connection.invalidate()
        is_fresh = self._generation == self._database.generation
        if error is None and is_fresh and len(self._idle) < self._database.most_idle:
            self._idle.append(self._connection)
        else:
            self._connection.close()  # which rolls back
