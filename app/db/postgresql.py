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
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from app.db.dialect import PASSING, Listener, Trouble, driver_error, trouble_without_code
from app.errors import DatabaseUnavailable, DatabaseUnusable

TROUBLE = {
    "0A": (Trouble.SERVER, "not supported: by a standby, or by a plan that was made before a migration"),
    "08": (Trouble.SERVER, "connection exception"),
    "20": (Trouble.STATEMENT, "case not found"),
    "21": (Trouble.STATEMENT, "cardinality violation"),
    "22": (Trouble.STATEMENT, "data exception"),
    "23": (Trouble.STATEMENT, "integrity constraint violation"),
    "25": (Trouble.SERVER, "invalid transaction state: the server only reads, or ended a transaction that idled"),
    "26": (Trouble.SERVER, "a prepared statement is gone: a pooler changed the connection behind it"),
    "27": (Trouble.STATEMENT, "triggered data change violation"),
    "28": (Trouble.SERVER, "invalid authorization"),
    "2F": (Trouble.STATEMENT, "SQL routine exception"),
    "38": (Trouble.STATEMENT, "external routine exception"),
    "39": (Trouble.STATEMENT, "external routine invocation exception"),
    "3D": (Trouble.SERVER, "the database is not there"),
    "40": (Trouble.MOMENT, "transaction rollback: deadlock, serialization failure"),
    "42": (Trouble.STATEMENT, "syntax error or access rule violation"),
    "42501": (Trouble.SERVER, "insufficient privilege: of the role, and given back by its administrator"),
    "42P05": (Trouble.SERVER, "a prepared statement is there already: a pooler changed the connection behind it"),
    "44": (Trouble.STATEMENT, "WITH CHECK OPTION violation"),
    "53": (Trouble.SERVER, "insufficient resources: memory, connections"),
    "53100": (Trouble.DISK, "disk full"),
    "54": (Trouble.STATEMENT, "program limit exceeded: a value is too long for its index"),
    "55": (Trouble.SERVER, "object not in prerequisite state"),
    "55P03": (Trouble.MOMENT, "lock not available: lock_timeout"),
    "57": (Trouble.SERVER, "operator intervention: shutdown, crash, start"),
    "57014": (Trouble.MOMENT, "query canceled"),
    "58": (Trouble.SERVER, "system error"),
    "58030": (Trouble.DISK, "I/O error"),
    "P0": (Trouble.STATEMENT, "raised by a function or a trigger"),
    "XX": (Trouble.SERVER, "internal error, damaged data or index"),
}
"""By SQLSTATE, else by its class, the first two characters. All others are SERVER."""

LOCK_TIMEOUT_SECONDS = 2.0
"""How long a statement waits for a row. Then the works that shared the transaction run each in their own, so that a row
which somebody keeps locked holds up only those that want it. It is longer than the second after which PostgreSQL looks
for deadlocks: that ends one of two transactions, equal timeouts would end both."""

IDLE_TIMEOUT_SECONDS = 60
"""After this the server ends the transaction of a process that was stopped in it, and frees the rows it locked."""

OLDEST_VERSION = 13_00_00
"""Of the server: it has pg_current_xact_id()."""

SERVER = "SELECT pg_backend_pid(), current_setting('server_encoding'), current_setting('synchronous_commit')"

FORMATS = {"DateStyle": "ISO, MDY", "TimeZone": "UTC"}
"""What psycopg reads times by. A pooler carries these two over from one of the server's sessions to the next."""

MIGRATION_LOCK = 7_203_481
"""The key of an advisory lock: any number that nothing else locks on the same database."""

KEY_LOCKS = 7_203_482
"""The class of the advisory locks of ``lock_keys``."""


WEAKNESSES = {
    "fsync": "the server's fsync is off: a power loss can lose acknowledged orders; set it to on",
    "full_page_writes": "the server's full_page_writes is off: a power loss can damage the database; set it to on",
}
"""By the server's setting that is off."""

POOLED = (
    "a pooler stands before the server: no statement is prepared, and in its transaction mode other machines' "
    "dispatchers are woken by their poll only"
)


class PostgreSQL:
    name = "postgresql"
    one_writer = False
    file: Path | None = None
    write_contention = 0.0

    def __init__(self, url: URL, timeout_seconds: float, pool_size: int) -> None:
        self.snapshot: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
        self.pooled = False
        """Whether a pooler, such as PgBouncer, stands between: of two transactions on one connection, each may then be
        another session of the server's."""
        self._limits = {
            "lock_timeout": milliseconds(min(timeout_seconds, LOCK_TIMEOUT_SECONDS)),
            "idle_in_transaction_session_timeout": milliseconds(IDLE_TIMEOUT_SECONDS),
            "synchronous_commit": "local",
        }
        """What holds for a transaction that writes. The server's ``synchronous_commit`` is raised to ``local`` where it
        is ``off``, and kept as it was found where it is more."""
        self._timeout_seconds = timeout_seconds
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            hide_parameters=True,
            isolation_level="READ COMMITTED",  # each transaction says so itself, whatever the server's default is
            pool_pre_ping=True,
            pool_timeout=timeout_seconds,
            connect_args={
                "tcp_user_timeout": int(1000 * timeout_seconds),  # a network that went dead is an error in time, too
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "client_encoding": "utf8",
            },
        )
        event.listen(self.engine, "connect", self._configure)

    def _configure(self, driver: Any, _: Any) -> None:
        """Called for each new connection. Raises DatabaseUnusable where the server is not what is relied on."""
        try:
            self._examine(driver)
            self._set(driver, FORMATS if self.pooled else FORMATS | self._limits)
            driver.commit()
        except BaseException as error:
            driver.close()
            if self.trouble(error) is Trouble.STATEMENT:
                raise DatabaseUnusable(f"DATABASE_URL names no PostgreSQL, but what says: {error}; name one") from error
            raise

    def _examine(self, driver: Any) -> None:
        """See what the server is, and whether a pooler stands before it: that makes up process numbers of its own."""
        process, encoding, synchronous_commit = driver.execute(SERVER).fetchone()
        if driver.info.server_version < OLDEST_VERSION:
            raise DatabaseUnusable(
                f"the server at DATABASE_URL is PostgreSQL {driver.info.server_version // 10_000}; name one of version "
                f"{OLDEST_VERSION // 10_000} or newer"
            )
        if encoding != "UTF8":
            raise DatabaseUnusable(
                f"the database {driver.info.dbname!r} is encoded in {encoding}, which can't hold every text; make one "
                "by 'createdb --encoding=UTF8 --template=template0 NAME', and name it in DATABASE_URL"
            )
        self.pooled = process != driver.info.backend_pid
        if self.pooled:
            driver.prepare_threshold = None
        self._limits["synchronous_commit"] = "local" if synchronous_commit == "off" else synchronous_commit

    def _set(self, driver: Any, wanted: dict[str, str], *, is_local: bool = False) -> None:
        """Set what is relied on, and read it back; for the running transaction where ``is_local``."""
        settings = ", ".join(f"set_config('{name}', %s, {is_local})" for name in wanted)
        found = driver.execute(f"SELECT {settings}", list(wanted.values())).fetchone()
        for (name, value), has in zip(wanted.items(), found, strict=True):
            if has != value:
                raise DatabaseUnusable(
                    f"the server at DATABASE_URL refuses {name}={value!r} (it stays {has!r}); name one that takes it"
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
        """psycopg begins a transaction with its first statement."""
        if self.pooled:
            self._set(driver, self._limits, is_local=True)

    def check_commit(self) -> None:
        """Nothing: the server knows its files."""

    def after_fork(self) -> None:
        """Nothing of its own is open."""

    def close(self) -> None:
        self.engine.dispose()

    def lock_keys(self, driver: Any, keys: Iterable[str]) -> None:
        hashes = sorted({zlib.crc32(key.encode()) - 2**31 for key in keys})  # all lock in one order
        driver.execute("SELECT pg_advisory_xact_lock(%s, key) FROM unnest(%s::int[]) AS key", (KEY_LOCKS, hashes))

    def pipeline(self, driver: Any) -> contextlib.AbstractContextManager[Any]:
        pipeline: contextlib.AbstractContextManager[Any] = driver.pipeline()
        return pipeline

    def trouble(self, error: BaseException) -> Trouble | None:
        driver: Any = self.engine.dialect.dbapi
        found = driver_error(error)
        if not isinstance(found, driver.Error) or (state := found.sqlstate) is None:
            return trouble_without_code(error, driver)
        return (TROUBLE.get(state) or TROUBLE.get(state[:2]) or (Trouble.SERVER,))[0]

    def is_transient(self, error: BaseException) -> bool:
        return self.trouble(error) in PASSING

    def cure(self, error: BaseException) -> str | None:
        """None: the server's words say what is wrong."""
        return None

    def session_settings(self, session: Session) -> dict[str, str]:
        driver: Any = session.connection().connection.dbapi_connection
        self.begin_write(driver)
        names = ("client_encoding", *FORMATS, *self._limits)
        return {name: session.execute(text(f"SHOW {name}")).scalar_one() for name in names}

    def weaknesses(self, session: Session) -> list[str]:
        found = [cure for setting, cure in WEAKNESSES.items() if session.scalar(text(f"SHOW {setting}")) == "off"]
        if session.scalar(text("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool")):
            found.append("the server only reads: orders are answered 503; name the primary in DATABASE_URL")
        if self.pooled:
            found.append(POOLED)
        return found

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
        except (SQLAlchemyError, DatabaseUnusable) as error:
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


def milliseconds(seconds: float) -> str:
    """A time as PostgreSQL shows it: in the largest unit that leaves no remainder."""
    count = int(1000 * seconds)
    for unit, size in (("min", 60_000), ("s", 1000)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}ms"


class UtcTimestamp(TypeDecorator[datetime]):
    """A time with its zone; it comes back in UTC, whatever zone the server is in."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Compiler) -> datetime | None:
        return None if value is None else value.astimezone(UTC)
