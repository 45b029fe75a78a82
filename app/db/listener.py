"""Hear PostgreSQL's notifications."""

from typing import Any

from sqlalchemy import Engine

from app.errors import DatabaseUnavailable


class Listener:
    """LISTEN on a connection of its own, made as all others are. Once that is lost, its methods raise
    DatabaseUnavailable."""

    def __init__(self, engine: Engine) -> None:
        pooled = engine.raw_connection()
        self._connection: Any = pooled.driver_connection
        pooled.detach()
        self._driver: Any = engine.dialect.dbapi

    def listen(self, channel: str) -> None:
        self._connection.autocommit = True
        self._connection.execute(f"LISTEN {channel}")

    def hears(self, seconds: float) -> bool:
        """Whether a notification comes within that time."""
        return any(True for _ in self._connection.notifies(timeout=seconds, stop_after=1))

    def fileno(self) -> int:
        if self._connection.closed:
            raise DatabaseUnavailable("the connection that listens is closed")
        return int(self._connection.fileno())

    def check(self) -> None:
        """Ask the server whether it is there. Notifications that come with the answer make ``fileno`` ready no more."""
        try:
            self._connection.execute("SELECT 1")
        except self._driver.Error as error:
            raise DatabaseUnavailable from error

    def drain(self) -> None:
        """Take off the connection what arrived."""
        try:
            list(self._connection.notifies(timeout=0))
        except self._driver.Error as error:
            raise DatabaseUnavailable from error

    def close(self) -> None:
        self._connection.close()
