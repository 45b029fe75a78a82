"""Statements that SQLAlchemy writes and the driver runs.

For the few that every order takes: SQLAlchemy's execution of a statement costs several times what the database takes
for it. Each is compiled once for each kind of database. Values are given by name, as to SQLAlchemy, and are bound as
their columns' types say; rows come as the driver gives them (see ``utc``, ``money``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Executable
from sqlalchemy.engine import Dialect


class Session(Protocol):
    """What a statement runs on: a transaction, or a Reader."""

    @property
    def driver(self) -> Any: ...

    @property
    def dialect(self) -> Dialect: ...


class Reader(NamedTuple):
    """A connection outside any transaction: each query sees the database as it is at its moment."""

    driver: Any
    dialect: Dialect


class Prepared:
    """A statement; call it with a session and the values."""

    def __init__(self, made: Executable | Callable[[str], Executable], *names: str) -> None:
        """``names`` are the columns that an INSERT names; ``made`` may depend on the dialect's name."""
        self._made = made
        self._names = names
        self._compiled: dict[str, _Compiled] = {}

    def __call__(self, session: Session, values: Mapping[str, Any]) -> Any:
        """Run it. Returns the driver's cursor."""
        compiled = self._for(session.dialect)
        return session.driver.execute(compiled.sql, compiled.bind(values))

    def many(self, session: Session, rows: Iterable[Mapping[str, Any]]) -> int:
        """Run it for each row. Returns how many rows of the table that met in all."""
        compiled = self._for(session.dialect)
        cursor = session.driver.cursor()
        cursor.executemany(compiled.sql, [compiled.bind(row) for row in rows])
        return int(cursor.rowcount)

    def at_once(self, session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run an INSERT, for all the rows in one statement."""
        compiled = self._for(session.dialect)
        session.driver.execute(compiled.repeated(len(rows)), [value for row in rows for value in compiled.bind(row)])

    def _for(self, dialect: Dialect) -> "_Compiled":
        found = self._compiled.get(dialect.name)
        if found is None:
            statement = self._made(dialect.name) if callable(self._made) else self._made
            found = self._compiled[dialect.name] = _Compiled(statement, self._names, dialect)
        return found


class _Compiled:
    def __init__(self, statement: Any, names: tuple[str, ...], dialect: Dialect) -> None:
        made: Any = type(dialect)
        by_position = dialect if dialect.positional else made(paramstyle="format")
        compiled = statement.compile(dialect=by_position, column_keys=list(names) or None)
        self.sql = str(compiled)
        self._slots = []
        for name in compiled.positiontup:
            bound = compiled.binds[name]
            process = bound.type.dialect_impl(dialect).bind_processor(dialect)
            fixed = bound.value if not bound.required else None
            self._slots.append((name, process, bound.required, process(fixed) if process else fixed))

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        return [
            fixed if not required else process(values[name]) if process else values[name]
            for name, process, required, fixed in self._slots
        ]

    def repeated(self, count: int) -> str:
        into, values = self.sql.split(" VALUES ")
        return f"{into} VALUES {', '.join([values] * count)}"


def utc(value: Any) -> datetime:
    """A time as the driver gives it."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value.astimezone(UTC)


def money(value: Any) -> Decimal:
    """An amount as the driver gives it."""
    return value if isinstance(value, Decimal) else Decimal(value)
