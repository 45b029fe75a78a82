"""What a database's error means: each code has its kind, and what nobody has thought of is nobody's fault."""

from typing import Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidRequestError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.db import Database, postgresql, sqlite, sqlite_module
from app.db.dialect import CONDEMNING, PASSING, Dialect, Trouble
from app.errors import DatabaseUnavailable, TransactionLost
from config import CHECKOUT

STATEMENT, MOMENT, SERVER, LASTING = Trouble

SQLSTATES: dict[str, type[psycopg.Error]] = {
    found.sqlstate: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, psycopg.Error) and found.sqlstate
}
"""All that psycopg knows, which are PostgreSQL's."""

SQLITE_CODES = {
    name: getattr(sqlite_module(), name)
    for name in dir(sqlite_module())
    if name.startswith("SQLITE_") and isinstance(getattr(sqlite_module(), name), int)
}


@pytest.fixture(scope="module")
def postgres() -> Dialect:
    return Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing").dialect


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Dialect:
    return Database(f"sqlite:///{tmp_path_factory.mktemp('trouble')}/orders.db").dialect


def of_sqlite(code: int) -> Exception:
    error: Any = sqlite_module().OperationalError("no")
    error.sqlite_errorcode = code
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize("state", SQLSTATES)
def test_every_sqlstate_falls_on_the_side_that_its_class_or_its_own_row_states(postgres: Dialect, state: str) -> None:
    stated = postgresql.TROUBLE.get(state) or postgresql.TROUBLE.get(state[:2]) or (SERVER, "")
    error = SQLSTATES[state]("no")
    assert postgres.trouble(error) is stated[0]
    assert postgres.trouble(DBAPIError("SELECT", None, error)) is stated[0]
    assert postgres.is_transient(error) == (stated[0] is not STATEMENT)


@pytest.mark.parametrize(
    ("state", "trouble"),
    [
        ("22001", STATEMENT),  # a value too long
        ("23505", STATEMENT),  # a unique constraint
        ("42601", STATEMENT),  # a syntax error
        ("42P01", STATEMENT),  # no such table
        ("P0001", STATEMENT),  # RAISE EXCEPTION in a trigger
        ("40P01", MOMENT),  # deadlock
        ("40001", MOMENT),  # serialization failure
        ("55P03", MOMENT),  # lock_timeout
        ("57014", MOMENT),  # canceled
        ("53100", LASTING),  # disk full
        ("25006", SERVER),  # the server only reads
        ("25P03", SERVER),  # the process was stopped in its transaction
        ("0A000", SERVER),  # cached plan must not change result type
        ("26000", SERVER),  # the prepared statement is not there
        ("42P05", SERVER),  # it is there already
        ("42501", LASTING),  # a GRANT was taken back
        ("08006", SERVER),  # the connection broke
        ("28P01", SERVER),  # the password was changed
        ("53300", SERVER),  # too many connections
        ("57P01", SERVER),  # the server shuts down
        ("57P03", SERVER),  # it starts up
        ("XX001", SERVER),  # data corrupted
        ("72000", SERVER),  # snapshot too old: of a class that no row names
    ],
)
def test_sqlstates_by_their_meaning(postgres: Dialect, state: str, trouble: Trouble) -> None:
    assert postgres.trouble(errors.lookup(state)("no")) is trouble


@pytest.mark.parametrize("state", ["ZZ999", "U0001", "45000"])
def test_an_sqlstate_that_nobody_knows_is_nobodys_fault(postgres: Dialect, state: str) -> None:
    error = psycopg.DatabaseError("no")
    error.sqlstate = state
    assert postgres.trouble(error) is SERVER


def test_no_row_of_the_table_is_for_what_does_not_exist() -> None:
    known = set(SQLSTATES) | {state[:2] for state in SQLSTATES}
    assert set(postgresql.TROUBLE) <= known


@pytest.mark.parametrize("name", SQLITE_CODES)
def test_every_code_of_sqlite_has_the_side_of_its_primary_code(file: Dialect, name: str) -> None:
    code = SQLITE_CODES[name]
    stated = sqlite.TROUBLE.get(code & 0xFF, (SERVER, ""))
    assert file.trouble(of_sqlite(code)) is stated[0]


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        (1, STATEMENT),  # ERROR
        (19 | 6 << 8, STATEMENT),  # CONSTRAINT_PRIMARYKEY
        (5, MOMENT),  # BUSY
        (5 | 2 << 8, MOMENT),  # BUSY_SNAPSHOT, an extended code
        (13, LASTING),  # FULL
        (10 | 4 << 8, LASTING),  # IOERR_FSYNC
        (8 | 4 << 8, LASTING),  # READONLY_DBMOVED
        (11, LASTING),  # CORRUPT
        (11 | 1 << 8, LASTING),  # CORRUPT_VTAB
        (14, SERVER),  # CANTOPEN
        (26, LASTING),  # NOTADB
        (7, SERVER),  # NOMEM
        (99, SERVER),  # of a later version
    ],
)
def test_codes_of_sqlite_by_their_meaning(file: Dialect, code: int, trouble: Trouble) -> None:
    assert file.trouble(of_sqlite(code)) is trouble
    assert file.trouble(DBAPIError("SELECT", None, of_sqlite(code))) is trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (psycopg.OperationalError("the connection is closed"), SERVER),
        (errors.ConnectionTimeout("connection timeout expired"), SERVER),
        (psycopg.InterfaceError("the cursor is closed"), SERVER),
        (psycopg.DatabaseError("no words at all"), SERVER),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), None),
        (psycopg.ProgrammingError("cannot adapt type 'object'"), None),
        (psycopg.NotSupportedError("no"), None),
        (PoolTimeout("QueuePool limit reached"), SERVER),
        (DisconnectionError("no"), SERVER),
        (PendingRollbackError("Can't reconnect until invalid transaction is rolled back", code="8s2b"), SERVER),
        (PendingRollbackError("rolled back due to a previous exception during flush", code="7s2a"), None),
        (InvalidRequestError("no"), None),
        (TransactionLost(), SERVER),
        (DatabaseUnavailable(), None),
        (ValueError("no"), None),
        (SystemExit(1), None),
        (of_sqlite(5), None),  # another database's
    ],
)
def test_errors_without_a_code(postgres: Dialect, error: BaseException, trouble: Trouble | None) -> None:
    """A value that the driver refuses to send is a fault of whoever made it, and no trouble of the database's."""
    assert postgres.trouble(error) is trouble


def test_errors_of_sqlite_without_a_code(file: Dialect) -> None:
    driver = sqlite_module()
    assert file.trouble(driver.DatabaseError("malformed")) is SERVER
    assert file.trouble(driver.ProgrammingError("Error binding parameter 1")) is None
    assert file.trouble(OSError("no")) is None
    assert file.trouble(errors.lookup("57P01")("no")) is None, "another database's"


def test_a_lost_transaction_passes_whatever_lost_it(file: Dialect) -> None:
    lost = TransactionLost()
    lost.__cause__ = of_sqlite(1)  # no such savepoint
    assert file.trouble(lost) is SERVER


def test_the_document_has_the_table() -> None:
    """``docs/guarantees.md`` shows each row, and what follows from it."""
    shown = (CHECKOUT / "docs" / "guarantees.md").read_text()
    for line in (*rows(postgresql.TROUBLE), *rows(sqlite.TROUBLE)):
        assert line in shown, f"docs/guarantees.md lacks this line: {line}"
    listed = [line for line in shown.splitlines() if line.endswith(tuple(f"| {name} |" for name in SIDES.values()))]
    assert len(listed) == len(postgresql.TROUBLE) + len(sqlite.TROUBLE), "a row that the code has no more"


SIDES = {STATEMENT: "statement", MOMENT: "moment", SERVER: "server", LASTING: "lasting"}


def rows(table: Any) -> list[str]:
    return [f"| `{code}` | {meaning} | {SIDES[trouble]} |" for code, (trouble, meaning) in table.items()]


def test_what_passes_is_all_but_the_statements_fault() -> None:
    assert set(Trouble) - PASSING == {STATEMENT}
    assert {MOMENT} == PASSING - CONDEMNING
