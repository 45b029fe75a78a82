"""The database: one engine, one function for all writes, one for reads.

SQLite runs in WAL mode with ``synchronous=FULL``: an acknowledged commit survives power loss. PostgreSQL runs as it
is set up. Nothing else in the application knows which of the two it talks to, but for ``insert`` below.
"""

import contextlib
import functools
import importlib
import itertools
import logging
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from blinker import Signal
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    MetaData,
    Numeric,
    String,
    Table,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import DateTime, TypeDecorator

from app.clock import Clock
from app.errors import DatabaseUnavailable, DatabaseUnusable, NestedTransaction, OutsideTransaction, SchemaBehind
from app.prepared import Reader
from app.turns import Turns

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA_REVISION = "0001"
"""The newest revision in migrations/, known here so that a start need not load Alembic. A test holds it."""

FIXED_SQLITE = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""Versions from which on their branch is free of the WAL-reset bug (sqlite.org/wal.html)."""

POSTGRESQL_OPTIONS = "-c lock_timeout={} -c idle_in_transaction_session_timeout=60000"
"""Milliseconds. The second one frees what a process holds that was stopped in the middle of a transaction."""

LOCK_SECONDS = 2.0
"""How long a statement waits for a row on PostgreSQL. Then what shared the transaction is done each for itself, so that
a row which somebody keeps locked holds up those only who want it; these ask again. It is more than the second after
which PostgreSQL looks for deadlocks, for that chooses one victim, and this none."""

PATIENT = 3
"""How many of a process' transactions wait for a stuck database as long as ``timeout``. The others are told at once, so
that threads remain to read, and to tell."""

KEPT_WRITERS = 8
"""How many connections are kept ready for the next transactions. SQLite, which has one writer, needs one."""

LARGEST_BATCH = 16
"""How many callers' work shares a commit: it bounds how long the write lock is held."""

PATIENCE = 0.05
"""Seconds that one waits on PostgreSQL to be taken along. Then one leads beside the others, who may wait for a row."""

CROWDED = 0.5
"""Half of the time another process was writing: from here on who is in no hurry lets others go first."""

COMPANY_SECONDS = 0.002
"""How long a commit is put off for those who are on their way to it."""

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


@functools.lru_cache(maxsize=64)  # a transaction stores its own time several times
def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, always with microseconds, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
_expected: ContextVar[bool] = ContextVar("expected", default=False)


def current() -> Transaction:
    """The running transaction. Raises OutsideTransaction."""
    transaction = _current.get()
    if transaction is None:
        raise OutsideTransaction
    return transaction


def on_postgresql(session: Session) -> bool:
    dialect = session.dialect if isinstance(session, Transaction) else session.get_bind().dialect
    return dialect.name == "postgresql"


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
        self.committed = Signal(
            "Sent after a commit; the sender is the database, `facts` what each caller's work told."
        )
        self.engine = _engine(self.url, timeout, pool_size)
        self._begin_anew()
        self._turns = Turns(Path(self.url.database)) if self.is_sqlite and self.url.database else None
        snapshot = {"sqlite_begin": "DEFERRED"} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        reading = self.engine.execution_options(**snapshot)
        self._reading_session = sessionmaker(reading, expire_on_commit=False)

    def _begin_anew(self) -> None:
        self._line: list[float] = []  # when each transaction that is not over began
        self._last_end = 0.0
        self._queue: deque[_Work] = deque()
        self._queue_lock = threading.Lock()
        self._leads = 0  # how many threads are committing, for themselves and for who is in the queue
        self._working = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        self._coming = 0  # how many threads are expected in the queue
        self._all_here = threading.Condition(self._queue_lock)
        self._writers: deque[Connection] = deque()

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @property
    def crowding(self) -> float:
        """How often of late this process found another one writing, from 0 to 1. On PostgreSQL nobody is in the way."""
        return self._turns.crowding if self._turns else 0.0

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work(session)`` in one write transaction, and return what it returns once that is durable.

        An exception rolls everything back. When the database is busy, gone or has chosen this transaction as the
        victim of a deadlock, or when another's work that shares it fails, the whole ``work`` runs again; so it must
        have no effects but on the session. Raises DatabaseUnavailable after ``timeout``, and sooner where the database
        is stuck and others here wait already; NestedTransaction inside another transaction.
        """
        if _current.get() is not None:
            raise NestedTransaction
        with self._in_line() as began:
            mine = _Work(work, began, copy_context())
            if self.is_sqlite or _expected.get():
                self._join(mine)
            else:  # on PostgreSQL a dispatcher's transactions run side by side
                mine.alone = True
                self._persistently([mine])
                self._tell([mine])
        if mine.error is not None:
            raise mine.error
        if not mine.done:
            raise RuntimeError("the transaction ended without a commit and without an error")
        return cast(T, mine.result)

    def expected(self) -> "_Expected":
        """In the block, who commits waits a moment for this thread's transaction to share the commit."""
        return _Expected(self)

    def let_work(self) -> None:
        """Where others queue for the write lock, wait while a transaction of this process is at its statements: each of
        them would give the interpreter away to a thread that has other things to do."""
        if self.crowding > CROWDED:
            with self._working:
                pass

    def _join(self, mine: "_Work") -> None:
        """Who comes while another thread commits waits, and shares the next commit. SQLite has one writer at a time;
        PostgreSQL, too, has many works done sooner in one transaction.

        The first leads: it does the work of all who have come meanwhile, then passes the lead on to who came after.
        """
        with self._queue_lock:
            self._arrived()
            leads = not self._leads
            if leads:
                self._leads = 1
            else:
                self._queue.append(mine)
        if leads or self._is_to_lead(mine):
            self._lead(mine)

    def _is_to_lead(self, mine: "_Work") -> bool:
        """Wait until my work is done, or to be done by me."""
        while not mine.turn.acquire(timeout=-1 if self.is_sqlite else PATIENCE):
            with self._queue_lock:
                if mine in self._queue:
                    self._queue.remove(mine)
                    self._leads += 1
                    return True
        return not mine.done

    def _lead(self, mine: "_Work") -> None:
        batch = [mine]
        try:
            self._await_company()
            self._persistently(batch)
        finally:
            with self._queue_lock:
                self._queue.extendleft(each for each in reversed(batch[1:]) if not each.done)
                if self._queue:
                    self._queue.popleft().turn.release()
                else:
                    self._leads -= 1
        self._tell(batch)

    def _arrived(self) -> None:
        """Who was expected is here. Called under the queue's lock."""
        if _expected.get():
            _expected.set(False)
            self._coming -= 1
            if not self._coming:
                self._all_here.notify_all()

    def _await_company(self) -> None:
        with self._queue_lock:
            if self._coming:
                self._all_here.wait_for(
                    lambda: not self._coming or len(self._queue) + 1 >= LARGEST_BATCH, COMPANY_SECONDS
                )

    def _tell(self, batch: "list[_Work]") -> None:
        facts = [each.facts for each in batch if each.facts and each.error is None]
        if facts:
            self.committed.send(self, facts=facts)

    def _persistently(self, batch: "list[_Work]") -> None:
        """Do the batch until its commit is through. What can't be done ends with DatabaseUnavailable."""
        for attempt in itertools.count():
            try:
                self._once(batch)
            except Exception as error:
                if (
                    len(batch) > 1
                ):  # one of them is wrong, or waits for a row: each for itself, so that it harms no other
                    self._part(batch)
                elif not is_passing(error):
                    self._last_end = time.monotonic()
                    batch[0].end(error)
                    return
                else:
                    pause = random.uniform(0, min(0.2, 0.002 * 2 ** min(attempt, 10)))  # noqa: S311 - no secret
                    self._give_up(batch, pause, error)
                    with self._queue_lock:
                        self._give_up(self._queue, pause, error)
                        self._queue = deque(each for each in self._queue if not each.done)
                    if batch[0].done:
                        return
                    time.sleep(pause)
            else:
                self._last_end = time.monotonic()
                return

    def _part(self, batch: "list[_Work]") -> None:
        """The leader goes on with its own work; the others come next, each alone."""
        for each in batch:
            each.alone = True
        with self._queue_lock:
            self._queue.extendleft(reversed(batch[1:]))
        del batch[1:]

    def _give_up(self, waiting: "Iterable[_Work]", pause: float, error: Exception) -> None:
        """End what may wait no longer."""
        for each in waiting:
            late = time.monotonic() + pause > each.began + self.timeout
            if not each.done and (_is_full(error) or late or self._enough_wait(each.began)):
                each.end(_unavailable(error))

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

    def _once(self, batch: "list[_Work]") -> None:
        """One transaction, for the batch and for who has come meanwhile."""
        with self._turns.taken() if self._turns else contextlib.nullcontext(), self._writing() as connection:
            if self.is_sqlite:
                connection.connection.dbapi_connection.execute("BEGIN IMMEDIATE")  # type: ignore[union-attr]
            self._fill(batch)
            now = self.clock.now()
            with self._working:
                for each in batch:
                    each.do(Transaction(connection, now))
            self._commit(connection, batch)
        for each in batch:
            each.end(None)

    def _fill(self, batch: "list[_Work]") -> None:
        """Whoever waits when the write lock is ours comes along."""
        with self._queue_lock:
            while self._queue and len(batch) < LARGEST_BATCH and not (batch[-1].alone or self._queue[0].alone):
                batch.append(self._queue.popleft())

    def _commit(self, connection: Connection, batch: "list[_Work]") -> None:
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
    def look(self) -> Iterator[Reader]:
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


class _Expected:
    """See Database.expected()."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __enter__(self) -> None:
        with self.database._queue_lock:
            self.database._coming += 1
        _expected.set(True)

    def __exit__(self, *_: object) -> None:
        with self.database._queue_lock:
            self.database._arrived()


class _Work:
    """What one caller of ``transact`` wants done, and what came of it."""

    __slots__ = ("alone", "began", "context", "done", "error", "facts", "result", "turn", "work")

    def __init__(self, work: Callable[[Transaction], Any], began: float, context: Context) -> None:
        self.work, self.began, self.context = work, began, context
        self.alone = False
        """Whether nobody's work is to share its transaction any more."""
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.facts: dict[str, Any] = {}
        self.turn = threading.Lock()
        self.turn.acquire()

    def do(self, session: Transaction) -> None:
        """In the caller's context, whichever thread it is that does it."""
        self.facts = session.facts
        self.result = self.context.run(self._within, session)

    def _within(self, session: Transaction) -> Any:
        _current.set(session)
        try:
            result = self.work(session)
            session.write_out()
            return result
        finally:
            if session.is_used:
                session.close()
            _current.set(None)

    def end(self, error: Exception | None) -> None:
        """It is over; who waits for it goes on."""
        self.error, self.done = error, True
        self.turn.release()


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


def _unavailable(cause: Exception) -> DatabaseUnavailable:
    error = DatabaseUnavailable()
    error.__cause__ = cause
    return error


def _is_full(error: Exception) -> bool:
    """Disk trouble does not pass within a request: say so at once."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (8, 10, 13)
