"""The database. Nothing else in the application knows which of the two it talks to, but for ``insert``."""

from app.db.columns import Base, Money, UtcTime, iso, table
from app.db.database import CROWDED, SCHEMA_REVISION, Database
from app.db.engine import is_passing, sqlite_is_safe, sqlite_module
from app.db.prepared import Prepared, Reader, money, utc
from app.db.transaction import Transaction, current, insert, on_postgresql

__all__ = [
    "CROWDED",
    "SCHEMA_REVISION",
    "Base",
    "Database",
    "Money",
    "Prepared",
    "Reader",
    "Transaction",
    "UtcTime",
    "current",
    "insert",
    "is_passing",
    "iso",
    "money",
    "on_postgresql",
    "sqlite_is_safe",
    "sqlite_module",
    "table",
    "utc",
]
