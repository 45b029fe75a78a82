"""Prepared statements: SQLAlchemy compiles each once, the driver runs it.

They are for the few statements of every order and of live pages, because SQLAlchemy's execution costs several times
what the database takes. Values are given by name and bound by their columns' types. Rows come as the driver gives
them: ``utc`` and ``money`` convert the values that differ between drivers.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Executable
from sqlalchemy.orm import Session

from app.db.dialect import Dialect, dialect_of

_INSERT = re.compile(r"(.* VALUES )(\(.*?\))((?: ON CONFLICT .*)?(?: RETURNING .*)?)", re.DOTALL)


class Runner(Protocol):
    """A connection that prepared statements run on: a Transaction or a Reader."""

    @property
    def driver(self) -> Any: ...

    @property
    def dialect(self) -> Dialect: ...


class Reader(NamedTuple):
    """A connection in autocommit: each query sees the database as it is at its moment."""

    driver: Any
    dialect: Dialect


def reader_of(session: Session) -> Reader:
    """A session's connection: prepared queries see what the session does, but for what it has not flushed."""
    return Reader(session.connection().connection.dbapi_connection, dialect_of(session))


class Prepared:
    """A statement; call it with a transaction or a reader, and the values."""

    def __init__(self, made: Executable | Callable[[Dialect], Executable], *names: str) -> None:
        """``names`` are the columns that an INSERT names; ``made`` may depend on the dialect."""
        self._made = made
        self._names = names
        self._compiled: dict[str, Compiled] = {}

    def __call__(self, runner: Runner, values: Mapping[str, Any]) -> Any:
        """Run it. Returns the driver's cursor."""
        compiled = self.compiled(runner.dialect)
        return runner.dialect.execute(runner.driver, compiled.sql, compiled.bind(values))

    def many(self, runner: Runner, rows: Iterable[Mapping[str, Any]]) -> int:
        """Run it for each row. Returns how many rows of the table that affected in all."""
        compiled = self.compiled(runner.dialect)
        cursor = runner.driver.cursor()
        cursor.executemany(compiled.sql, [compiled.bind(row) for row in rows])
        return int(cursor.rowcount)

    def insert_all(self, runner: Runner, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Run an INSERT, for all the rows in one statement. Returns the cursor; its rows have no order."""
        return runner.dialect.execute(runner.driver, *self.for_rows(runner.dialect, rows))

    def for_rows(self, dialect: Dialect, rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
        """The SQL of an INSERT for all the rows, and its values."""
        compiled = self.compiled(dialect)
        return compiled.for_rows(len(rows)), [value for row in rows for value in compiled.bind(row)]

    def compiled(self, dialect: Dialect) -> "Compiled":
        found = self._compiled.get(dialect.name)
        if found is None:
            statement = self._made(dialect) if callable(self._made) else self._made
            found = self._compiled[dialect.name] = Compiled(statement, self._names, dialect)
        return found


class Compiled:
    """A statement in one database's SQL. ``parameters`` are the names of its values, in their order.

    What is the same each time is written into the SQL, where the planner sees it, and need not be bound.
    """

    def __init__(self, statement: Any, names: tuple[str, ...], dialect: Dialect) -> None:
        types = dialect.engine.dialect
        made: Any = type(types)
        by_position = types if types.positional else made(paramstyle="format")
        compiled = statement.compile(dialect=by_position, column_keys=list(names) or None)
        self._for_rows: dict[int, str] = {}
        self._slots = []
        is_percent = by_position.paramstyle == "format"
        placeholder = "%s" if is_percent else "?"
        self.sql, *pieces = str(compiled).split(placeholder)
        for name, piece in zip(compiled.positiontup, pieces, strict=True):
            bound = compiled.binds[name]
            process = bound.type.dialect_impl(types).bind_processor(types)
            if bound.required:
                self._slots.append((name, process))
                self.sql += placeholder + piece
            else:
                literal = _literal(process(bound.value) if process else bound.value)
                self.sql += (literal.replace("%", "%%") if is_percent else literal) + piece
        self.parameters = tuple(name for name, _ in self._slots)

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        return [process(values[name]) if process else values[name] for name, process in self._slots]

    def for_rows(self, count: int) -> str:
        """The INSERT for so many rows."""
        if count not in self._for_rows:
            into, values, rest = _INSERT.fullmatch(self.sql).groups()  # type: ignore[union-attr]  # it is an INSERT
            self._for_rows[count] = into + ", ".join([values] * count) + rest
        return self._for_rows[count]


def _literal(value: str | Decimal | int | None) -> str:
    """A value that stands in our code."""
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else f"{value}"


def utc(value: Any) -> datetime:
    """A time as the driver gives it."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value.astimezone(UTC)


def money(value: Any) -> Decimal:
    """An amount as the driver gives it."""
    return value if isinstance(value, Decimal) else Decimal(value)
