"""Turns: how long a page pauses before its next poll, so that a hundred viewers cost little more than a few.

Pure but for the clock that it is given. A few pages poll every PAUSE_SECONDS; where there are many, their polls of one
process come APART_SECONDS apart, and each page waits for its turn.
"""

import threading
from collections.abc import Callable

HEADER = "Next-Poll-Seconds"
"""Of a live part's answer: the pause."""

PAUSE_SECONDS = 0.8

APART_SECONDS = 0.06
"""A poll costs up to a millisecond of processor time, all in all: 17 a second are a fiftieth of a processor."""

LONGEST_PAUSE_SECONDS = 4.0
"""Less than gunicorn's keepalive, so that a page needs no new connection. From 67 pages of one process on, their polls
come more often than APART_SECONDS."""


class Turns:
    """One for each application, which is one for each process. For any thread."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last = float("-inf")
        """The last turn that was given."""

    def pause_seconds(self) -> float:
        """Until the turn of the page that asks."""
        now = self._monotonic()
        with self._lock:
            self._last = min(max(self._last + APART_SECONDS, now + PAUSE_SECONDS), now + LONGEST_PAUSE_SECONDS)
            return self._last - now

    def longer_seconds(self) -> float:
        """By how much pauses are longer than PAUSE_SECONDS now."""
        return max(0.0, self._last - self._monotonic() - PAUSE_SECONDS)
