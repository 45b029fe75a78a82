"""Processes that write to one SQLite file take turns.

SQLite lets a writer that finds the database locked sleep for 1, 2, 5, 10 and more milliseconds between looks; between
processes that each write for half a millisecond, that is where the time goes. Here they queue at two locks on files
beside the database: who holds ``next`` is the one that waits for ``turn``, so nobody takes two turns while one waits.
It is courtesy and no more: SQLite's own lock keeps the data safe, and who has waited for PATIENCE goes on without it,
so a process that was stopped while it held a lock costs the others little. The kernel frees a dead one's locks.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 0.05
"""Seconds."""

PAUSE = 0.0001
"""Seconds between looks."""

SKIPPED = 0.6
"""Of the usual wait for a turn: in so much of it there is nothing to be seen yet, and each look costs two switches."""

LONGEST_PAUSE = 0.002
"""Seconds between looks at most, however long the waits were of late."""


class Turns:
    """One for each process. ``with turns.taken(): write``. For one thread at a time."""

    crowding = 0.0
    """How often of late another process had the turn, from 0 to 1."""

    usual_wait = 0.0
    """Seconds from being the next to having the turn, of late."""

    def __init__(self, file: Path) -> None:
        self._paths = [file.with_name(f"{file.name}-{name}") for name in ("next", "turn")]
        self._locks: list[int] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        began = time.monotonic()
        held = self._take(began + PATIENCE)
        self.crowding += ((time.monotonic() - began > PAUSE) - self.crowding) / 8
        try:
            yield
        finally:
            if held is not None:
                fcntl.flock(held, fcntl.LOCK_UN)

    def _take(self, deadline: float) -> int | None:
        """The lock that was taken; None where it was not to be had, in time or at all."""
        try:
            while len(self._locks) < len(self._paths):
                path = self._paths[len(self._locks)]
                self._locks.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            following, turn = self._locks
            if not _lock(following, deadline):
                return None
            try:
                began = time.monotonic()
                taken = _lock(turn, deadline, min(self.usual_wait * SKIPPED, LONGEST_PAUSE))
                self.usual_wait += (time.monotonic() - began - self.usual_wait) / 8
                return turn if taken else None
            finally:
                fcntl.flock(following, fcntl.LOCK_UN)
        except OSError:  # the disk is full, the file is another user's, the file system knows no locks
            return None

    def forget(self) -> None:
        """After a fork: a lock on the parent's open file would be the parent's."""
        for lock in self._locks:
            os.close(lock)
        self._locks = []


def _lock(file: int, deadline: float, pause: float = 0) -> bool:
    """Whether the lock was to be had by then. Between the first two looks lie ``pause`` seconds."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(max(pause, PAUSE))
            pause = 0
        else:
            return True
