"""Move: copy a stopped service's SQLite file into an empty PostgreSQL database, in one transaction of the latter.

Rows go by PostgreSQL's COPY. The copy is counted and summed on both sides before the commit, so that the target is
either whole or empty, whatever fails or is killed in between.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Table, cast, func, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from app.db import schema
from app.db.columns import Base, Money, UtcTime
from app.db.database import SCHEMA_REVISION, Database
from app.db.dialect import Dialect
from app.db.prepared import Prepared, Reader, utc
from app.db.sqlite import driver_module
from app.db.sqlite_backup import STOP_ALL
from app.errors import AppError, DatabaseUnavailable, MoveFailed

ROWS_PER_REPORT = 10_000
"""Rows that are copied between two reports of progress."""

LONGEST_WORD = 16
"""Characters of a column that holds words, such as a state: its rows are counted by word."""

Sums = dict[str, Any]
"""Of one table: by column, what was counted and summed; and by "rows" their number."""


def move(source_url: str, target_url: str, begin: Callable[[int], Callable[[int], object]]) -> dict[str, Sums]:
    """Copy all tables, and the numbers that come next. Returns by table what is in the file, and now in the target.

    ``begin`` is called with how many rows there are; what it returns, now and then, with how many were copied since.
    Raises MoveFailed; then the target is empty.
    """
    source, target = _url(source_url, "--from"), _url(target_url, "--to")
    if source.get_backend_name() != "sqlite" or target.get_backend_name() != "postgresql":
        raise MoveFailed(
            "a move goes from SQLite to PostgreSQL only: on the way back the cursors of the events' feed would lose "
            "their meaning; give --from sqlite:///FILE and --to postgresql+psycopg://HOST/NAME"
        )
    with _held(source) as reader, closing(Database(target_url)) as database, _prepared(database) as connection:
        return _copy(reader, database, connection, begin)


def _url(url: str, option: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise MoveFailed(f"{option} is no database's URL ({error}); write it as DATABASE_URL") from error


@contextmanager
def _held(source: URL) -> Iterator[Reader]:
    """Nobody else can open the file until the block ends, in WAL mode and by SQLite's own lock. Raises MoveFailed."""
    file, driver = Path(source.database or ""), driver_module()
    if not file.is_file():
        raise MoveFailed(f"there is no file {file}; name the service's database in --from")
    with closing(driver.connect(file, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN IMMEDIATE")
        except driver.Error as error:
            cure = STOP_ALL if os.access(file, os.W_OK) else "run this as the user that the service runs as"
            raise MoveFailed(f"{file} can't be had alone ({error}); {cure}") from error
        reader = Reader(connection, Database(source.render_as_string()).dialect)
        _check_revision(reader, file)
        yield reader


def _check_revision(reader: Reader, file: Path) -> None:
    try:
        found = reader.driver.execute("SELECT version_num FROM alembic_version").fetchone()
    except driver_module().Error as error:
        raise MoveFailed(f"{file} is no database of this service ({error}); name another file") from error
    if found is None or found[0] != SCHEMA_REVISION:
        raise MoveFailed(
            f"{file} has schema {found and found[0]}, this code's is {SCHEMA_REVISION}; set DATABASE_URL to --from and "
            "run 'flask db upgrade' with the code of the newer of the two"
        )


@contextmanager
def _prepared(target: Database) -> Iterator[Connection]:
    """A transaction on the target's empty tables, that nobody else can use until it ends. Raises MoveFailed.

    An empty database is given its schema first.
    """
    try:
        if target.schema_revision() is None:
            schema.upgrade(target)
        target.check_schema()
        with target.dialect.exclusive(target.timeout) as connection:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            names = ", ".join(table.name for table in Base.metadata.sorted_tables)
            connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
            for table in Base.metadata.sorted_tables:
                if connection.execute(select(table).limit(1)).first() is not None:
                    raise MoveFailed(f"the target is not empty: {table.name} has rows; name a new database in --to")
            yield connection
        with target.engine.execution_options(**target.dialect.autocommit).connect() as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("ANALYZE"))
    except DatabaseUnavailable as error:
        raise MoveFailed(f"the target can't be used ({error.reason}); nothing was copied") from error
    except DBAPIError as error:
        raise MoveFailed(f"the target failed ({error.orig}); it is as it was before, so run this again") from error
    except MoveFailed:
        raise
    except AppError as error:
        raise MoveFailed(f"the target can't be used: {error}") from error


def _copy(
    reader: Reader, target: Database, connection: Connection, begin: Callable[[int], Callable[[int], object]]
) -> dict[str, Sums]:
    writer = Reader(connection.connection.dbapi_connection, target.dialect)
    tables = Base.metadata.sorted_tables
    _check_names(reader)
    report = begin(sum(reader.driver.execute(f"SELECT count(*) FROM {each.name}").fetchone()[0] for each in tables))  # noqa: S608 - our own names
    constraints = _drop_foreign_keys(connection)
    for table in tables:
        _copy_table(reader, writer, table, report)
    for constraint in constraints:
        connection.execute(text(constraint))
    for table in tables:
        _continue_numbers(reader, connection, table)
    return {table.name: _compared(table, sums(reader, table), sums(writer, table)) for table in tables}


def _check_names(reader: Reader) -> None:
    """Raises MoveFailed where the file has a table or a column that the code does not know: it would be left behind."""
    listed = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    there = {name for (name,) in reader.driver.execute(listed)} - {"alembic_version"}
    known = {table.name: set(table.columns.keys()) for table in Base.metadata.sorted_tables}
    columns = {name: {row[1] for row in reader.driver.execute(f"PRAGMA table_info({name})")} for name in known}
    differ = [name for name in sorted(known) if columns[name] != known[name]]
    if differ or there - known.keys():
        raise MoveFailed(
            f"the file's schema differs from the code's in {', '.join([*differ, *sorted(there - known.keys())])}: run "
            "'flask db check' with the code that the service runs; a table of another program's is to be dropped first"
        )


def _drop_foreign_keys(connection: Connection) -> list[str]:
    """Checking each row as it comes takes longer than checking all at the end. Returns how to make them again."""
    found = connection.execute(
        text(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE contype = 'f' AND connamespace = current_schema()::regnamespace"
        )
    ).all()
    for table, name, _ in found:
        connection.execute(text(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"'))
    return [f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {definition}' for table, name, definition in found]


def _copy_table(reader: Reader, writer: Reader, table: Table, report: Callable[[int], object]) -> None:
    """As the file has them: its amounts, times and numbers are texts that PostgreSQL reads exactly."""
    columns = ", ".join(table.columns.keys())
    target: Any = writer.dialect.engine.dialect.dbapi
    copied = 0
    try:
        with writer.driver.cursor().copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
            for row in reader.driver.execute(f"SELECT {columns} FROM {table.name}"):  # noqa: S608 - our own names
                copy.write_row(row)
                copied += 1
                if copied % ROWS_PER_REPORT == 0:
                    report(ROWS_PER_REPORT)
    except (driver_module().Error, target.Error) as error:
        raise MoveFailed(
            f"row {copied + 1:,} of {table.name} was not taken ({error}); the target is empty as before: mend what is "
            "wrong, and run this again"
        ) from error
    report(copied % ROWS_PER_REPORT)


def _continue_numbers(reader: Reader, connection: Connection, table: Table) -> None:
    """The next number is the one that the file would have given: never one that was used before."""
    column = table.autoincrement_column
    if column is None or not isinstance(column.type, sa.Integer) or column.autoincrement is False:
        return
    query = (
        f"SELECT max(coalesce((SELECT max({column.name}) FROM {table.name}), 0), "  # noqa: S608 - our own names
        "coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?), 0))"
    )
    (last,) = reader.driver.execute(query, [table.name]).fetchone()
    sequence = "pg_get_serial_sequence(:table, :column)"
    values = {"table": table.name, "column": column.name, "last": max(last, 1), "used": last > 0}
    connection.execute(text(f"SELECT setval({sequence}, :last, :used)"), values)


def sums(reader: Reader, table: Table) -> Sums:
    """A table's checksums, which both databases compute alike: counts, sums, and the first and last time."""

    def whole(dialect: Dialect) -> Any:
        return select(func.count(), *(part for column in table.columns for part in _parts(dialect, column)))

    count, *found = Prepared(whole)(reader, {}).fetchone()
    result: Sums = {"rows": count}
    for column in table.columns:
        parts = [found.pop(0) for _ in _parts(reader.dialect, column)]
        result[column.name] = [_plain(column, part) for part in parts]
        if isinstance(column.type, sa.String) and (column.type.length or LONGEST_WORD + 1) <= LONGEST_WORD:
            words = Prepared(select(column, func.count()).group_by(column))(reader, {}).fetchall()
            result[column.name] = dict(sorted((word or "", number) for word, number in words))
    return result


def _parts(dialect: Dialect, column: Any) -> list[Any]:
    match column.type:
        case Money():
            return [func.count(column), func.sum(dialect.in_cents(column))]
        case UtcTime() | sa.Float():  # a sum of floats depends on the order
            return [func.count(column), func.min(column), func.max(column)]
        case sa.Boolean():
            return [func.count(column), func.sum(cast(column, sa.Integer))]
        case sa.Integer():
            return [func.count(column), func.sum(column)]
        case _:
            return [func.count(column), func.sum(func.length(column))]


def _plain(column: Any, value: Any) -> Any:
    if value is None or isinstance(value, float):
        return value
    return int(value) if not isinstance(column.type, UtcTime) or isinstance(value, int) else utc(value)


def _compared(table: Table, there: Sums, here: Sums) -> Sums:
    """Raises MoveFailed where they differ."""
    for name, value in there.items():
        if here[name] != value:
            raise MoveFailed(
                f"{table.name}.{name} differs after the copy: {value} in the file, {here[name]} in the target, which "
                "is empty again; run 'flask db backup', which checks the file for damage"
            )
    return there
