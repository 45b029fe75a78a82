"""PostgreSQL, set up as its administrator chose."""

import contextlib
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Select,
    Text,
    cast,
    create_engine,
    event,
    func,
    text,
    tuple_,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect as Compiler
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import TypeDecorator

from app.db.dialect import Listener, driver_error, is_connection_trouble
from app.errors import DatabaseUnavailable

TRANSIENT = {
    "40001": "serialization failure",
    "40P01": "deadlock detected",
    "55P03": "lock not available: lock_timeout",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "53400": "configuration limit exceeded",
    "57014": "query canceled",
    "57P01": "admin shutdown",
    "57P02": "crash shutdown",
    "57P03": "cannot connect now",
    "57P05": "idle session timeout",
    "25P03": "idle in transaction timeout: the process was stopped in the middle of a transaction",
}
"""SQLSTATEs of trouble that passes. So does all of class 08, which is about connections."""

LOCK_TIMEOUT_SECONDS = 2.0
"""How long a statement waits for a row. Then the works that shared the transaction run each in their own, so that a row
which somebody keeps locked holds up only those that want it. It is longer than the second after which PostgreSQL looks
for deadlocks: that ends one of two transactions, equal timeouts would end both."""

IDLE_TIMEOUT_SECONDS = 60
"""After this the server ends the transaction of a process that was stopped in it, and frees the rows it locked."""

MIGRATION_LOCK = 7_203_481
"""The key of an advisory lock: any number that nothing else locks on the same database."""

KEY_LOCKS = 7_203_482
"""The class of the advisory locks of ``lock_keys``."""


class PostgreSQL:
    name = "postgresql"
    one_writer = False
    file: Path | None = None
    write_contention = 0.0

    def __init__(self, url: URL, timeout_seconds: float, pool_size: int) -> None:
        self.snapshot: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
        self._timeout_seconds = timeout_seconds
        lock_timeout = int(1000 * min(timeout_seconds, LOCK_TIMEOUT_SECONDS))
        idle_timeout = 1000 * IDLE_TIMEOUT_SECONDS
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_timeout=timeout_seconds,
            connect_args={
                "tcp_user_timeout": int(1000 * timeout_seconds),  # a network that went dead is an error in time, too
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "options": f"-c lock_timeout={lock_timeout} -c idle_in_transaction_session_timeout={idle_timeout}",
            },
        )

        event.listen(self.engine, "do_connect", self._connect)

    def _connect(self, _: Any, __: Any, arguments: Any, parameters: Any) -> Any:
        """Called for each new connection."""
        from app.db.answer_deadline import Connection  # here, because it needs the driver

        return Connection.open(self._timeout_seconds, *arguments, **parameters)

    def deadline(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        from app.db.answer_deadline import deadline

        return deadline(seconds)

    def write_queue(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def begin_write(self, driver: Any) -> None:
        """Nothing: psycopg begins a transaction with its first statement."""

    def after_fork(self) -> None:
        """Nothing of its own is open."""

    def lock_keys(self, driver: Any, keys: Iterable[str]) -> None:
        hashes = sorted({zlib.crc32(key.encode()) - 2**31 for key in keys})  # all lock in one order
        driver.execute("SELECT pg_advisory_xact_lock(%s, key) FROM unnest(%s::int[]) AS key", (KEY_LOCKS, hashes))

    def pipeline(self, driver: Any) -> contextlib.AbstractContextManager[Any]:
        pipeline: contextlib.AbstractContextManager[Any] = driver.pipeline()
        return pipeline

    @staticmethod
    def is_transient(error: BaseException) -> bool:
        state = getattr(driver_error(error), "sqlstate", None)
        if state is None:
            return is_connection_trouble(error)
        return state in TRANSIENT or state.startswith("08")

    def is_disk_trouble(self, error: BaseException) -> bool:
        return False

    def defect(self) -> str | None:
        return None

    def insert(self, table: Any) -> Any:
        return postgresql.insert(table)

    def raw_text(self, column: Any) -> Any:
        """As it is: the server stores no text that is damaged."""
        return column

    def transaction_id(self) -> Any:
        return cast(cast(func.pg_current_xact_id(), Text), BigInteger)

    def in_commit_order(self, page: Select[Any], transaction_id: Any, position: Any, after: tuple[int, int]) -> Any:
        """Rows commit out of the order of their positions. So they are read in the order of their transactions, up to
        the oldest that still runs."""
        oldest_running = cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger)
        page = page.where(transaction_id < oldest_running, tuple_(transaction_id, position) > after)
        return page.order_by(transaction_id, position)

    @contextlib.contextmanager
    def exclusive(self, timeout_seconds: float) -> Iterator[Connection]:
        with self.deadline(float("inf")), self.engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {int(1000 * timeout_seconds)}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            yield connection

    def notify(self, channel: str) -> None:
        """Raises DatabaseUnavailable."""
        try:
            with self.deadline(self._timeout_seconds), self.engine.begin() as connection:
                connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": channel})
        except SQLAlchemyError as error:
            raise DatabaseUnavailable from error

    def listen(self, channel: str) -> Listener | None:
        try:
            with self.deadline(self._timeout_seconds):
                return _Listener(self.engine, channel)
        except Exception as error:
            if not self.is_transient(error):
                raise
            raise DatabaseUnavailable from error


class _Listener:
    """LISTEN on a connection of its own, made as all others are."""

    def __init__(self, engine: Engine, channel: str) -> None:
        import psycopg

        pooled = engine.raw_connection()
        driver: Any = pooled.driver_connection
        pooled.detach()
        self._connection = driver
        try:
            self._connection.autocommit = True
            self._connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        except BaseException:
            self._connection.close()
            raise

    def fileno(self) -> int:
        if self._connection.closed:
            raise DatabaseUnavailable("the connection that listens is closed")
        return int(self._connection.fileno())

    def check(self) -> None:
        import psycopg

        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise DatabaseUnavailable from error

    def drain(self) -> None:
        import psycopg

        try:
            list(self._connection.notifies(timeout=0))
        except psycopg.Error as error:
            raise DatabaseUnavailable from error

    def close(self) -> None:
        self._connection.close()


class UtcTimestamp(TypeDecorator[datetime]):
    """A time with its zone; it comes back in UTC, whatever zone the server is in."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Compiler) -> datetime | None:
        return None if value is None else value.astimezone(UTC)
