"""A queue of processes for SQLite's write lock, so that they need not sleep for it.

SQLite lets a writer that finds the database locked sleep for 1, 2, 5, 10 and more milliseconds. Processes that each
write for about two would mostly sleep. Here two files beside the database are locked: the process that holds ``next``
waits for ``writing``, all others wait for ``next``, so none writes twice while another waits.

The queue only saves time. SQLite's own lock keeps the data safe, and the kernel frees the locks of a process that died.
"""

import fcntl
import os
import time
from pathlib import Path

LONGEST_WAIT_SECONDS = 0.05
"""Then a process writes without its place: one that was stopped while it held a lock costs the others little."""

PAUSE_SECONDS = 0.0001
"""Between tries to get a lock."""

FIRST_TRY = 0.6
"""Of the usual wait for ``writing``: before that a try is in vain, and each one makes two threads switch."""

LONGEST_FIRST_PAUSE_SECONDS = 0.002
"""Before the first try, however long the waits were of late."""

SMOOTHING = 8
"""Averages follow the last eight times or so."""


class WriteQueue:
    """One for each process and database. For one thread at a time."""

    contention = 0.0
    """How often of late another process was writing when this one wanted to, from 0 to 1."""

    usual_wait_seconds = 0.0
    """From being the next to writing, of late."""

    def __init__(self, database_file: Path) -> None:
        self._paths = [database_file.with_name(f"{database_file.name}-{name}") for name in ("next", "writing")]
        self._locks: list[int] = []
        self._writing: int | None = None
        """The lock that the block holds."""

    def __enter__(self) -> None:
        """Write in the block. It begins when no process is before this one, or after LONGEST_WAIT_SECONDS."""
        began = time.monotonic()
        self._writing = self._queue(began + LONGEST_WAIT_SECONDS)
        waited = time.monotonic() - began > PAUSE_SECONDS
        self.contention += (waited - self.contention) / SMOOTHING

    def __exit__(self, *_: object) -> None:
        if self._writing is not None:
            fcntl.flock(self._writing, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files; the next write opens them again.

        In a forked child they are the parent's: a lock on them would hold for both.
        """
        for lock in self._locks:
            os.close(lock)
        self._locks = []

    def _queue(self, deadline: float) -> int | None:
        """The lock on ``writing``; None where it was not to be had, in time or at all."""
        try:
            following, writing = self._open()
            if not _lock(following, deadline):
                return None
            try:
                return writing if self._await(writing, deadline) else None
            finally:
                fcntl.flock(following, fcntl.LOCK_UN)
        except OSError:  # the disk is full, the file is another user's, the file system knows no locks
            return None

    def _open(self) -> list[int]:
        while len(self._locks) < len(self._paths):
            path = self._paths[len(self._locks)]
            self._locks.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return self._locks

    def _await(self, writing: int, deadline: float) -> bool:
        began = time.monotonic()
        first_pause = min(self.usual_wait_seconds * FIRST_TRY, LONGEST_FIRST_PAUSE_SECONDS)
        is_locked = _lock(writing, deadline, first_pause)
        self.usual_wait_seconds += (time.monotonic() - began - self.usual_wait_seconds) / SMOOTHING
        return is_locked


def _lock(file: int, deadline: float, first_pause: float = 0) -> bool:
    """Whether the lock was to be had by then."""
    pause = max(first_pause, PAUSE_SECONDS)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(pause)
        pause = PAUSE_SECONDS
