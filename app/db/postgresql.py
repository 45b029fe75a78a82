"""PostgreSQL, set up as its administrator chose."""

import contextlib
import itertools
import logging
import os
import re
import socket
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    DateTime,
    Numeric,
    Select,
    Text,
    cast,
    create_engine,
    event,
    func,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect as Compiler
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from app.db import postgresql_health
from app.db.dialect import Dialect, Trouble, driver_error, trouble_without_code
from app.db.listener import Listener
from app.errors import DatabaseUnavailable, DatabaseUnusable

log = logging.getLogger(__name__)

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
    "42501": (Trouble.LASTING, "insufficient privilege: of the role, and given back by its administrator"),
    "42P05": (Trouble.SERVER, "a prepared statement is there already: a pooler changed the connection behind it"),
    "44": (Trouble.STATEMENT, "WITH CHECK OPTION violation"),
    "53": (Trouble.SERVER, "insufficient resources: memory, connections"),
    "53100": (Trouble.LASTING, "disk full"),
    "54": (Trouble.STATEMENT, "program limit exceeded: a value is too long for its index"),
    "55": (Trouble.SERVER, "object not in prerequisite state"),
    "55P03": (Trouble.MOMENT, "lock not available: lock_timeout"),
    "57": (Trouble.SERVER, "operator intervention: shutdown, crash, start"),
    "57014": (Trouble.MOMENT, "query canceled"),
    "58": (Trouble.SERVER, "system error"),
    "58030": (Trouble.LASTING, "I/O error"),
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

GIVEN_UP_SECONDS = 2.0
"""After ``timeout_seconds`` the client has given a statement up; so much later the server ends it, too."""

SERVER_KEEPALIVES = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""By these the server notices within a minute that a client's machine or network is dead, and frees its connection; by
its own defaults some hours later. Meanwhile a network that comes and goes would use all of ``max_connections`` up."""

LISTEN_PROBE_SECONDS = 1.0
"""How long a listener behind a pooler waits for a notification of its own, to see whether any can be heard."""

OLDEST_VERSION = 13_00_00
"""Of the server: it has pg_current_xact_id()."""

SERVER = "SELECT pg_backend_pid(), current_setting('server_encoding'), current_setting('synchronous_commit')"

FORMATS = {"DateStyle": "ISO, MDY", "TimeZone": "UTC"}
"""Formats in which psycopg reads times. A pooler carries these two over from one server session to the next."""

PROBE_CHANNEL = "listen_probe"

APPLICATION = "orders"
"""How the names of this service's connections begin at the server."""

MIGRATION_LOCK = 7_203_481
"""The key of an advisory lock: any number that nothing else locks on the same database."""

KEY_LOCKS = 7_203_482
"""The class of the advisory locks of ``lock_keys``."""

TRIED_LOCKS = 7_203_483
"""The same, of ``try_lock_keys``."""


WEAKNESSES = {
    "fsync": "the server's fsync is off: a power loss can lose acknowledged orders; set it to on",
    "full_page_writes": "the server's full_page_writes is off: a power loss can damage the database; set it to on",
}
"""By the server's setting that is off."""

POOLED = (
    "a pooler stands before the server: no statement is prepared; where it is in transaction mode, let dispatchers on "
    "other machines than what serves reach the server without it, or set their POLL_SECONDS to 0.5"
)


DEAF = (
    "a pooler in transaction mode stands before PostgreSQL, so processes on other machines can't wake this dispatcher, "
    "only the poll: let it reach the server without the pooler, or set POLL_SECONDS to 0.5"
)


class PostgreSQL(Dialect):
    name = "postgresql"
    one_writer = False

    def __init__(self, url: URL, timeout_seconds: float, pool_size: int) -> None:
        self.snapshot: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
        self.autocommit: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
        self.pooled = False
        """Whether a pooler, such as PgBouncer, stands between: of two transactions on one connection, each may then be
        another session of the server's."""
        self._hears = True
        """Whether a listener hears notifications: not behind a pooler in transaction mode."""
        self._limits = {
            "lock_timeout": milliseconds(min(timeout_seconds, LOCK_TIMEOUT_SECONDS)),
            "statement_timeout": milliseconds(timeout_seconds + GIVEN_UP_SECONDS),
            "idle_in_transaction_session_timeout": milliseconds(IDLE_TIMEOUT_SECONDS),
            "synchronous_commit": "local",
        }
        """What holds for a transaction that writes. The server's ``synchronous_commit`` is raised to ``local`` where it
        is ``off``, and kept as it was found where it is more."""
        self._timeout_seconds = timeout_seconds
        dead_network_milliseconds = int(1000 * _half(timeout_seconds))
        self._of_the_network = SERVER_KEEPALIVES | {"tcp_user_timeout": f"{dead_network_milliseconds}"}
        """Both ends give a dead network up at the same time: the next try would else wait for the rows that this one
        has locked. They are not read back: through a Unix socket there are none, and operating systems lack some."""
        self.pool_size = pool_size
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
            isolation_level="READ COMMITTED",  # each transaction says so itself, whatever the server's default is
            pool_pre_ping=True,
            pool_timeout=timeout_seconds,
            connect_args={
                "tcp_user_timeout": dead_network_milliseconds,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "client_encoding": "utf8",
            },
        )
        self._raw_cursor: Any = self.engine.dialect.dbapi.RawCursor  # type: ignore[union-attr]  # it is psycopg
        event.listen(self.engine, "do_connect", self._connect)
        event.listen(self.engine, "connect", self._configure)

    def _connect(self, _: Any, __: Any, arguments: Any, parameters: Any) -> Any:
        """Called for each new connection."""
        from app.db.answer_deadline import Connection  # here, because it needs the driver

        parameters.setdefault("application_name", application_name())
        return Connection.open(self._timeout_seconds, *arguments, **parameters)

    def _configure(self, driver: Any, _: Any) -> None:
        """Called for each one that was made. Raises DatabaseUnusable where the server is not what is relied on."""
        try:
            self._examine(driver)
            if self.pooled:
                self._set(driver, FORMATS)
            else:
                self._set(driver, FORMATS | self._limits, self._of_the_network)
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

    def _set(
        self, driver: Any, wanted: dict[str, str], unread: dict[str, str] | None = None, *, is_local: bool = False
    ) -> None:
        """Set what is relied on, and read it back but for ``unread``. ``is_local``: for the running transaction."""
        chosen = wanted | (unread or {})
        settings = ", ".join(f"set_config('{name}', %s, {is_local})" for name in chosen)
        found = driver.execute(f"SELECT {settings}", list(chosen.values())).fetchone()
        for (name, value), has in zip(wanted.items(), found, strict=False):
            if has != value:
                raise DatabaseUnusable(
                    f"the server at DATABASE_URL refuses {name}={value!r} (it stays {has!r}); name one that takes it"
                )

    def deadline(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        from app.db.answer_deadline import deadline

        return deadline(seconds)

    def begin_write(self, driver: Any) -> None:
        """psycopg begins a transaction with its first statement."""
        if self.pooled:
            self._set(driver, self._limits, is_local=True)

    def close(self) -> None:
        self.engine.dispose()

    def lock_keys(self, driver: Any, keys: Iterable[str]) -> None:
        hashes = sorted(set(map(_hash, keys)))  # all lock in one order
        driver.execute("SELECT pg_advisory_xact_lock(%s, key) FROM unnest(%s::int[]) AS key", (KEY_LOCKS, hashes))

    def try_lock_keys(self, driver: Any, keys: Iterable[str]) -> set[str]:
        hashes = {key: _hash(key) for key in keys}
        query = "SELECT key FROM unnest(%s::int[]) AS key WHERE pg_try_advisory_xact_lock(%s, key)"
        had = {key for (key,) in driver.execute(query, (list(set(hashes.values())), TRIED_LOCKS))}
        return {key for key, number in hashes.items() if number in had}

    def lock_table(self, driver: Any, table: str) -> None:
        driver.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")

    def execute(self, driver: Any, sql: str, values: list[Any]) -> Any:
        return self._raw_cursor(driver).execute(_numbered(sql), values)

    def insert_together(self, driver: Any, inserts: list[tuple[str, list[Any]]]) -> None:
        sql = _numbered(*(sql for sql, _ in inserts))
        self._raw_cursor(driver).execute(sql, [value for _, values in inserts for value in values])

    def trouble(self, error: BaseException) -> Trouble | None:
        driver: Any = self.engine.dialect.dbapi
        found = driver_error(error)
        if not isinstance(found, driver.Error) or (state := found.sqlstate) is None:
            return trouble_without_code(error, driver)
        return (TROUBLE.get(state) or TROUBLE.get(state[:2]) or (Trouble.SERVER,))[0]

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
        return [*found, *postgresql_health.notes(session)]

    def connections(self, session: Session) -> postgresql_health.Connections | None:
        if self.pooled:
            return None  # the pooler's settings count
        return postgresql_health.connections(session, application_name(), APPLICATION, self.pool_size)

    def version(self, session: Session) -> str:
        return f"PostgreSQL {session.scalar(text('SHOW server_version'))}"

    def server_time(self, session: Session) -> datetime | None:
        found: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        return found

    def insert(self, table: Any) -> Any:
        return postgresql.insert(table)

    def plus_cents(self, amount: Any, cents: Any) -> Any:
        return amount + cast(cents, Numeric(20, 2)) / 100

    def in_cents(self, amount: Any) -> Any:
        return cast(type_coerce(amount, Numeric(20, 2)) * 100, BigInteger)

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
            connection.execute(text("SET LOCAL statement_timeout = 0"))
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
        """None behind a pooler in transaction mode, which keeps what a LISTEN asks for from the client that asked."""
        if self.pooled and not self._hears:
            return None
        try:
            with self.deadline(self._timeout_seconds):
                return self._listener(channel)
        except Exception as error:
            if not self.is_transient(error):
                raise
            raise DatabaseUnavailable from error

    def _listener(self, channel: str) -> Listener | None:
        """Whichever mode a pooler is in, it does not tell. So the listener first has itself notified.

        What a pooler's connection still listens to afterwards is a channel on which nothing else is said.
        """
        listener = Listener(self.engine)
        try:
            if self.pooled:
                listener.listen(PROBE_CHANNEL)
                self.notify(PROBE_CHANNEL)
                self._hears = listener.hears(LISTEN_PROBE_SECONDS)
            if self._hears:
                listener.listen(channel)
                return listener
            log.warning(DEAF)
        except BaseException:
            listener.close()
            raise
        listener.close()
        return None


@lru_cache(maxsize=1024)
def _numbered(*inserts: str) -> str:
    """Statements as one, with its parameters as the server has them: ``$1``. psycopg makes that of ``%s``, but keeps it
    for statements of up to 50 values only: for the rows of a commit it would make it anew each time."""
    *before, sql = inserts
    if before:
        sql = f"WITH {', '.join(f'insert_{number} AS ({each})' for number, each in enumerate(before))} {sql}"
    numbers = itertools.count(1)
    return re.sub("%[s%]", lambda found: f"${next(numbers)}" if found[0] == "%s" else "%", sql)


def _half(timeout_seconds: float) -> float:
    """When a dead network is an error: early enough for another try on a new connection. A healthy one that has lost a
    packet needs up to a second."""
    return max(timeout_seconds / 2, min(timeout_seconds, 1.0))


def application_name() -> str:
    """Of this process, as the server's ``pg_stat_activity`` shows it; it keeps 63 characters."""
    return f"{APPLICATION} {os.getpid()} {socket.gethostname()}"[:63]


def _hash(key: str) -> int:
    """For an advisory lock: 32 bits, with a sign."""
    return zlib.crc32(key.encode()) - 2**31


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
