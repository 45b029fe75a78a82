"""The database: one engine, one function for all writes, one for reads.

SQLite runs in WAL mode with ``synchronous=FULL``: an acknowledged commit survives power loss. PostgreSQL runs as it
is set up. Nothing else in the application knows which of the two it talks to, but for ``insert`` below.
"""

import contextlib
import importlib
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from blinker import Signal
from sqlalchemy import URL, Engine, MetaData, Numeric, String, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import DateTime, TypeDecorator

from app.clock import Clock
from app.errors import DatabaseUnavailable, DatabaseUnusable, NestedTransaction, OutsideTransaction, SchemaBehind

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA_REVISION = "0001"
"""The newest revision in migrations/, known here so that a start need not load Alembic. A test holds it."""

FIXED_SQLITE = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""Versions from which on their branch is free of the WAL-reset bug (sqlite.org/wal.html)."""

POSTGRESQL_OPTIONS = "-c lock_timeout={} -c idle_in_transaction_session_timeout=60000"
"""Milliseconds. The second one frees what a process holds that was stopped in the middle of a transaction."""

PATIENT = 3
"""How many of a process' transactions wait for a stuck database as long as ``timeout``. The others are told at once, so
that threads remain to read, and to tell."""

STUCK_SECONDS = 1.0
"""A database is stuck when transactions wait here and none has ended for so long."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


class Money(TypeDecorator[Decimal]):
    """An exact amount with two decimals. On SQLite, which has no decimal type, it is text that reads ``19.99``."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(String(24) if dialect.name == "sqlite" else Numeric(20, 2))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return f"{value:.2f}"

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return value if value is None or isinstance(value, Decimal) else Decimal(value)


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC. On SQLite it is ISO 8601 text that sorts: ``2026-11-23T08:15:30.123456Z``."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(String(27) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return iso(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        return value if value is None else value.astimezone(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, always with microseconds, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Transaction(Session):
    """A session inside the one write transaction that ``Database.transact`` opened for it."""

    now: datetime
    """When the transaction began, by the injected clock."""

    facts: dict[str, Any]
    """What listeners to ``Database.committed`` should know; forgotten when the transaction rolls back."""


_current: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


def current() -> Transaction:
    """The running transaction. Raises OutsideTransaction."""
    transaction = _current.get()
    if transaction is None:
        raise OutsideTransaction
    return transaction


def on_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def table(model: type[Base]) -> Table:
    """The table of a model, for statements that shall run without the ORM's help."""
    assert isinstance(model.__table__, Table)  # noqa: S101 - for the type checker: it could be a join
    return model.__table__


def insert(session: Session, table: type[Base]) -> Any:
    """An INSERT that has ``on_conflict_do_nothing`` and ``on_conflict_do_update`` on this database."""
    dialect = postgresql if on_postgresql(session) else sqlite
    return dialect.insert(table)


class Database:
    """The way to the database. ``timeout`` is how many seconds a write may wait for its turn."""

    def __init__(self, url: str, *, clock: Clock | None = None, timeout: float = 10, pool_size: int = 20) -> None:
        self.url = make_url(url)
        self.clock = clock or Clock()
        self.timeout = timeout
        self.committed = Signal("Sent after a commit; the sender is the database, `facts` what happened in it.")
        self.engine = _engine(self.url, timeout, pool_size)
        self._line: list[float] = []  # when each transaction that is not over began
        self._last_end = 0.0
        snapshot = {"sqlite_begin": "DEFERRED"} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        reading = self.engine.execution_options(**snapshot)
        self._writing_session = sessionmaker(self.engine, class_=Transaction, expire_on_commit=False)
        self._reading_session = sessionmaker(reading, expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work(session)`` in one write transaction, and return what it returns once that is durable.

        An exception rolls everything back. When the database is busy, gone or has chosen this transaction as the
        victim of a deadlock, the whole ``work`` runs again, until ``timeout``; so it must have no effects but on the
        session. Raises DatabaseUnavailable then, and sooner where the database is stuck and others here wait already;
        NestedTransaction inside another transaction.
        """
        if _current.get() is not None:
            raise NestedTransaction
        with self._in_line() as began:
            result, facts = self._persistently(work, began)
        self.committed.send(self, facts=facts)
        return result

    def _persistently(self, work: Callable[[Transaction], T], began: float) -> tuple[T, dict[str, Any]]:
        for attempt in range(1_000_000):
            try:
                done = self._once(work)
            except Exception as error:
                if not is_passing(error):
                    self._last_end = time.monotonic()
                    raise
                pause = random.uniform(0, min(0.2, 0.002 * 2 ** min(attempt, 10)))  # noqa: S311 - no secret
                if _is_full(error) or time.monotonic() + pause > began + self.timeout or self._enough_wait(began):
                    raise DatabaseUnavailable from error
                time.sleep(pause)
            else:
                self._last_end = time.monotonic()
                return done
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _in_line(self) -> Iterator[float]:
        """Yields when the transaction began. Raises DatabaseUnavailable when enough wait already."""
        began = time.monotonic()
        if not self._line:
            self._last_end = began
        elif self._enough_wait(began):
            raise DatabaseUnavailable
        self._line.append(began)
        try:
            yield began
        finally:
            self._line.remove(began)

    def _enough_wait(self, began: float) -> bool:
        """Whether the database is stuck, and PATIENT transactions of this process that began earlier wait for it."""
        stuck = time.monotonic() - self._last_end > STUCK_SECONDS
        return stuck and sum(other < began for other in list(self._line)) >= PATIENT

    def _once(self, work: Callable[[Transaction], T]) -> tuple[T, dict[str, Any]]:
        with self._writing_session() as session:
            session.now, session.facts = self.clock.now(), {}
            token = _current.set(session)
            try:
                result = work(session)
                session.commit()
            finally:
                _current.reset(token)
        return result, session.facts

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
        self._inherited = self.engine.pool
        self.engine.dispose(close=False)

    def close(self) -> None:
        self.engine.dispose()


def _engine(url: URL, timeout: float, pool_size: int) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_timeout=timeout,
            connect_args={
                "connect_timeout": max(2, int(timeout)),
                "options": POSTGRESQL_OPTIONS.format(int(timeout * 1000)),
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
        connection.exec_driver_sql("BEGIN " + connection.get_execution_options().get("sqlite_begin", "IMMEDIATE"))

    return engine


def _set_pragmas(connection: Any, timeout: float) -> None:
    """Set what durability depends on, and read it back: SQLite ignores what it can't do without a word."""
    wanted = {
        "busy_timeout": int(min(timeout, STUCK_SECONDS) * 1000),
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


PASSING_STATES = {"40001", "40P01", "55P03", "53300", "53400", "57014", "57P01", "57P02", "57P03", "53100", "53200"}
"""SQLSTATEs that pass: serialization, deadlock, lock timeout, too many connections, shutdown, disk or memory full."""

PASSING_SQLITE = {5: "BUSY", 6: "LOCKED", 10: "IOERR", 13: "FULL", 14: "CANTOPEN", 15: "PROTOCOL", 8: "READONLY"}
"""Primary result codes of SQLite that pass (sqlite.org/rescode.html)."""


def is_passing(error: Exception) -> bool:
    """Whether the trouble is the database's and passes, rather than a fault of the statement."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    cause = getattr(error, "orig", None)
    if (state := getattr(cause, "sqlstate", None)) is not None:
        return state in PASSING_STATES or state.startswith("08")
    if (code := getattr(cause, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in PASSING_SQLITE
    return isinstance(error, OperationalError) and bool(error.connection_invalidated or cause is not None)


def _is_full(error: Exception) -> bool:
    """Disk trouble does not pass within a request: say so at once."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (8, 10, 13)
