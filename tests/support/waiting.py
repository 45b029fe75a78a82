"""Wait for a condition, with a limit; never for a fixed time."""

from collections.abc import Callable

from sqlalchemy import text

from app.db import Database
from tests.support.service import wait_until


def until(condition: Callable[[], object], seconds: float = 40) -> None:
    """Return as soon as ``condition()`` is true. Raises AssertionError after ``seconds``."""
    wait_until(condition, str(condition), seconds, pause=0.005)


def somebody_waits(database: Database) -> bool:
    """Whether a transaction on PostgreSQL waits for another one's lock."""
    with database.read() as session:
        return bool(session.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
