"""The database: one way to write, two ways to read. Nothing outside this folder asks which database it is."""

from app.clock import iso
from app.db.columns import Base, Money, UtcTime, table
from app.db.database import SCHEMA_REVISION, Database
from app.db.dialect import Dialect, dialect_of
from app.db.listener import Listener
from app.db.prepared import Prepared, Reader, Runner, money, reader_of, utc
from app.db.sqlite import driver_module as sqlite_module
from app.db.sqlite_file import pin as pin_file
from app.db.transaction import FirstRow, Transaction

__all__ = [
    "SCHEMA_REVISION",
    "Base",
    "Database",
    "Dialect",
    "FirstRow",
    "Listener",
    "Money",
    "Prepared",
    "Reader",
    "Runner",
    "Transaction",
    "UtcTime",
    "dialect_of",
    "iso",
    "money",
    "pin_file",
    "reader_of",
    "sqlite_module",
    "table",
    "utc",
]
