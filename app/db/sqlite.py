"""SQLite, in WAL mode with ``synchronous=FULL``: a commit that was acknowledged survives power loss."""

import contextlib
import fcntl
import importlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Integer,
    LargeBinary,
    Select,
    String,
    cast,
    create_engine,
    event,
    func,
    text,
    type_coerce,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.engine import Dialect as Compiler
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from app.clock import iso
from app.db.dialect import Dialect, Trouble, driver_error, trouble_without_code
from app.db.sqlite_file import DBMOVED, DatabaseFile, is_pinned
from app.db.write_queue import WriteQueue
from app.errors import DatabaseUnavailable, DatabaseUnusable, SchemaBehind

FIXED_VERSIONS = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""Versions from which on their branch is free of the WAL-reset bug (sqlite.org/wal.html)."""

WAL_RESET_BUG = (
    "SQLite {} can corrupt a database that several processes write (the WAL-reset bug, fixed in 3.51.3); "
    "'pip install pysqlite3' brings a newer one, where a wheel for this Python exists"
)

TROUBLE = {
    1: (Trouble.STATEMENT, "ERROR: wrong SQL, or a table that is not there"),
    4: (Trouble.MOMENT, "ABORT"),
    5: (Trouble.MOMENT, "BUSY"),
    6: (Trouble.MOMENT, "LOCKED"),
    8: (Trouble.LASTING, "READONLY"),
    9: (Trouble.MOMENT, "INTERRUPT"),
    10: (Trouble.LASTING, "IOERR"),
    11: (Trouble.LASTING, "CORRUPT: the file is damaged"),
    12: (Trouble.STATEMENT, "NOTFOUND"),
    13: (Trouble.LASTING, "FULL"),
    15: (Trouble.MOMENT, "PROTOCOL: too much contention for a lock"),
    17: (Trouble.MOMENT, "SCHEMA: another process has just changed it"),
    18: (Trouble.STATEMENT, "TOOBIG"),
    19: (Trouble.STATEMENT, "CONSTRAINT"),
    20: (Trouble.STATEMENT, "MISMATCH"),
    21: (Trouble.STATEMENT, "MISUSE"),
    25: (Trouble.STATEMENT, "RANGE"),
    26: (Trouble.LASTING, "NOTADB: the file is no database"),
}
"""By primary result code (sqlite.org/rescode.html). All others, such as CANTOPEN and NOMEM, are SERVER: the file is
opened anew."""

DAMAGE = {11, 26}
"""Codes of a file that is damaged."""


WAL_LIMIT_BYTES = 64 * 1024 * 1024
"""To what size the WAL shrinks again, once no reader holds it any more."""

READONLY, CANTOPEN = 8, 14

FULL_DISK_BYTES = 1_000_000
"""With less than so much room, a failed write was one for which there was none."""

BUSY_SECONDS = 1.0
"""How long one try to begin, or to read, waits for SQLite's lock."""


class SQLite(Dialect):
    name = "sqlite"
    one_writer = True

    def __init__(self, url: URL, timeout_seconds: float, pool_size: int) -> None:
        self.snapshot: dict[str, Any] = {"sqlite_begin": "DEFERRED"}
        self.autocommit: dict[str, Any] = {}
        self.file: Path = Path(url.database or "").absolute()
        self._write_queue = WriteQueue(self.file)
        self._database_file = DatabaseFile(self.file, driver_module(), self._open_anchor)
        self._busy_milliseconds = int(1000 * min(timeout_seconds, BUSY_SECONDS))
        if url.database and not is_pinned(self.file):
            _make_private(self.file)
        self.engine = create_engine(
            url, module=driver_module(), hide_parameters=True, pool_size=pool_size, pool_timeout=timeout_seconds
        )
        self.engine.dialect.statement_compiler = _Compiler
        # Else the driver asks None, and the protocol of adaption, whether they know a way to bind it.
        driver_module().register_adapter(type(None), lambda none: none)
        event.listen(self.engine, "do_connect", self._before_connect)
        event.listen(self.engine, "connect", self._configure)
        event.listen(self.engine, "checkout", self.check_file)
        event.listen(self.engine, "begin", _begin)

    def _configure(self, driver: Any, _: Any) -> None:
        driver.isolation_level = None  # transactions begin where _begin says, not where the driver guesses
        set_pragmas(driver, self._busy_milliseconds)

    def _before_connect(self, *_: Any) -> None:
        self._database_file.check()
        self._refuse_read_only()

    def _refuse_read_only(self) -> None:
        """SQLite opens what it can't write for reading, and such a connection could not write afterwards either."""
        if self.file.exists() and not os.access(self.file, os.W_OK):
            error = driver_module().OperationalError("attempt to write a readonly database")
            error.sqlite_errorcode = READONLY
            raise error

    def _open_anchor(self) -> Any:
        self._refuse_read_only()
        driver = driver_module().connect(self.file, check_same_thread=False)
        set_pragmas(driver, self._busy_milliseconds)
        return driver

    @property
    def write_contention(self) -> float:
        return self._write_queue.contention

    def write_queue(self) -> contextlib.AbstractContextManager[None]:
        return self._write_queue

    def begin_write(self, driver: Any) -> None:
        self._database_file.check()
        driver.execute("BEGIN IMMEDIATE")

    def check_file(self, *_: Any) -> None:
        self._database_file.check()

    def after_fork(self) -> None:
        self._write_queue.close()
        self._database_file.after_fork()

    def close(self) -> None:
        self.engine.dispose()
        self._database_file.close()
        self._write_queue.close()

    def execute(self, driver: Any, sql: str, values: list[Any]) -> Any:
        return driver.execute(sql, values)

    def insert_together(self, driver: Any, inserts: list[tuple[str, list[Any]]]) -> None:
        for sql, values in inserts:
            driver.execute(sql, values)

    def trouble(self, error: BaseException) -> Trouble | None:
        code = _code(error)
        if code is None:
            return trouble_without_code(error, driver_module())
        return TROUBLE.get(code & 0xFF, (Trouble.SERVER,))[0]

    def cure(self, error: BaseException) -> str | None:
        code = _code(error)
        if code is None or code == DBMOVED:
            return None
        if code & 0xFF in DAMAGE:
            return f"{self.file.name} is damaged: stop the service, and restore a backup with 'flask db restore'"
        if code & 0xFF == CANTOPEN or self.trouble(error) is Trouble.LASTING:
            return self._cure_of_the_disk()
        return None

    def _cure_of_the_disk(self) -> str:
        """By what the disk is like now: SQLite's code of a write that failed tells less."""
        name, folder = self.file.name, self.file.parent
        try:
            disk = os.statvfs(folder)
        except OSError as error:
            return f"the folder of {name} can't be reached: {error.strerror}; bring it back"
        if disk.f_bavail * disk.f_frsize < FULL_DISK_BYTES:
            return f"the disk that holds {name} is full: make room on it"
        if disk.f_flag & os.ST_RDONLY:
            return f"the disk that holds {name} is mounted read-only: mount it for writing"
        if not (os.access(self.file, os.W_OK) and os.access(folder, os.W_OK)):
            return f"let the user {os.getuid()}, whom the service runs as, write {name} and its folder"
        return f"the disk that holds {name} fails, or became read-only: the kernel's log (dmesg) tells"

    def session_settings(self, session: Session) -> dict[str, str]:
        names = wanted_pragmas(self._busy_milliseconds)
        return {name: str(session.execute(text(f"PRAGMA {name}")).scalar_one()) for name in names}

    def version(self, session: Session) -> str:
        return f"SQLite {driver_module().sqlite_version}"

    def defect(self) -> str | None:
        version = driver_module().sqlite_version_info
        return None if is_safe(version) else WAL_RESET_BUG.format(driver_module().sqlite_version)

    def insert(self, table: Any) -> Any:
        return sqlite.insert(table)

    def raw_text(self, column: Any) -> Any:
        """As bytes: text that is no longer UTF-8 breaks the query that reads it as text."""
        return cast(column, LargeBinary)

    def plus_cents(self, amount: Any, cents: Any) -> Any:
        cents = self.in_cents(amount) + cents
        return func.printf("%d.%02d", cents // 100, cents % 100)

    def in_cents(self, amount: Any) -> Any:
        return cast(func.replace(type_coerce(amount, String), ".", ""), Integer)

    def transaction_id(self) -> Any:
        """Always 0: with one writer at a time, positions are in the order of commits."""
        return 0

    def in_commit_order(self, page: Select[Any], transaction_id: Any, position: Any, after: tuple[int, int]) -> Any:
        return page.where(position > after[1]).order_by(position)

    @contextlib.contextmanager
    def exclusive(self, timeout_seconds: float) -> Iterator[Connection]:
        # A new file switches to WAL without regard to busy_timeout: the first process to open it must be alone.
        lock_file = Path(f"{self.file}.lock")
        lock_file.touch(mode=0o600)
        with lock_file.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            engine = create_engine(self.engine.url, module=driver_module(), connect_args={"isolation_level": None})
            with engine.begin() as connection:
                # Foreign keys are off here (SQLite's default): a batch migration drops and rebuilds a table, and with
                # them on that would delete the rows that point to it.
                for statement in (
                    "PRAGMA busy_timeout=30000",
                    "PRAGMA journal_mode=wal",
                    "PRAGMA synchronous=FULL",
                    "BEGIN IMMEDIATE",
                ):
                    connection.exec_driver_sql(statement)
                yield connection
                if broken := connection.execute(text("PRAGMA foreign_key_check")).fetchall():
                    raise SchemaBehind(f"the upgrade would leave rows without their parent: {broken[:3]}")
            engine.dispose()


class _Compiler(SQLiteCompiler):
    """SQLite looks at a bare parameter of LIMIT or OFFSET to plan the query, so each time it is bound it compiles the
    query anew, which takes longer than most run. It does not look behind a ``+``."""

    def limit_clause(self, select: Any, **options: Any) -> str:
        clause: str = super().limit_clause(select, **options)  # type: ignore[no-untyped-call]
        return clause.replace(" LIMIT ", " LIMIT +").replace(" OFFSET ", " OFFSET +")


class MoneyText(TypeDecorator[Decimal]):
    """An amount as text that reads ``19.99``: SQLite has no decimal type."""

    impl = String(24)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Compiler) -> str | None:
        return None if value is None else f"{value:.2f}"

    def process_result_value(self, value: Any, dialect: Compiler) -> Decimal | None:
        return None if value is None else Decimal(value)


class TimeText(TypeDecorator[datetime]):
    """A time as ISO 8601 text that sorts: ``2026-11-23T08:15:30.123456Z``."""

    impl = String(27)
    cache_ok = True

    def bind_processor(self, dialect: Compiler) -> Callable[[datetime | None], str | None]:
        """In place of process_bind_param, which would be called by a function of SQLAlchemy's for each value."""
        return lambda value: None if value is None else iso(value)

    def process_result_value(self, value: Any, dialect: Compiler) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


def driver_module() -> ModuleType:
    """The driver: pysqlite3, which carries its own recent SQLite, else the standard library's."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return sqlite3


def is_safe(version: tuple[int, ...]) -> bool:
    """Whether that version of SQLite is free of the WAL-reset bug."""
    newest = FIXED_VERSIONS[0]
    return version >= newest or any(version[:2] == fixed[:2] and version >= fixed for fixed in FIXED_VERSIONS)


def wanted_pragmas(busy_milliseconds: int) -> dict[str, int | str]:
    return {
        "busy_timeout": busy_milliseconds,
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "journal_size_limit": WAL_LIMIT_BYTES,
        "temp_store": 2,  # MEMORY: in a container there may be no folder for temporary files
    }


def set_pragmas(driver: Any, busy_milliseconds: int) -> None:
    """Set what durability depends on, and read it back: SQLite silently ignores what it can't do."""
    for name, value in wanted_pragmas(busy_milliseconds).items():
        driver.execute(f"PRAGMA {name}={value}")
        found = driver.execute(f"PRAGMA {name}").fetchone()[0]
        if found != value:
            raise DatabaseUnavailable(
                f"SQLite refuses PRAGMA {name}={value} (it stays {found!r}); is the database on a network drive?"
            )


def _begin(connection: Connection) -> None:
    """Called by SQLAlchemy, whose transactions begin here."""
    driver: Any = connection.connection.dbapi_connection
    if not driver.in_transaction:  # Database.transact has begun it
        # A read transaction that turns to writing fails at once with BUSY_SNAPSHOT: writers begin as writers.
        connection.exec_driver_sql("BEGIN " + connection.get_execution_options().get("sqlite_begin", "IMMEDIATE"))


def _make_private(file: Path) -> None:
    """Make the file, for its owner's eyes only. SQLite's own files beside it get the same mode."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnusable(
            f"the folder {file.parent} can't be made: {error.strerror}; set INSTANCE_PATH, or DATABASE_URL, to a place "
            "that can be written to"
        ) from error
    with contextlib.suppress(OSError):  # where it can't be made, SQLite says why
        file.touch(mode=0o600, exist_ok=False)


def _code(error: BaseException) -> int | None:
    """SQLite's extended result code; None of an error that is not its own."""
    found = driver_error(error)
    return getattr(found, "sqlite_errorcode", None) if isinstance(found, driver_module().Error) else None
