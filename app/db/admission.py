"""Admission control: while the database is stuck, few of a process's threads wait for it.

The others are answered at once, so that threads remain for reads and for /readyz.
"""

import time

from app.errors import DatabaseUnavailable

STUCK_SECONDS = 1.0
"""A database is stuck when transactions wait for it and none has ended for so long."""

WAITING_WHEN_STUCK = 3
"""How many transactions may wait for a stuck database, up to their timeout."""


class Admission:
    """One for each process and database. ``timeout_seconds`` is how long a transaction may wait. For any thread."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._admitted: list[float] = []
        """When each transaction that has not ended began to wait."""
        self._last_end = 0.0

    def admit(self) -> float:
        """A transaction may be waited for, until ``leave``. Returns when that began. Raises DatabaseUnavailable."""
        began = time.monotonic()
        if not self._admitted:
            self._last_end = began
        elif not self.may_wait(began):
            raise DatabaseUnavailable
        self._admitted.append(began)
        return began

    def leave(self, began: float) -> None:
        """The wait that began then is over."""
        self._admitted.remove(began)

    def may_wait(self, began: float, seconds: float = 0) -> bool:
        """Whether the transaction that began to wait then may wait so much longer."""
        if self.is_overdue(began, seconds):
            return False
        now = time.monotonic()
        is_stuck = now - self._last_end > STUCK_SECONDS
        return not is_stuck or sum(other < began for other in list(self._admitted)) < WAITING_WHEN_STUCK

    def is_overdue(self, began: float, seconds: float = 0) -> bool:
        """Whether the time of the transaction that began to wait then is over, or will be so much later."""
        return time.monotonic() + seconds > began + self._timeout_seconds

    def transaction_ended(self) -> None:
        self._last_end = time.monotonic()
