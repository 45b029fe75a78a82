"""The database's file under a running service: it must stay the file that this process has opened.

Somebody may delete, move or replace it. A process goes on with the file that it has open, and nobody would find its
commits; in WAL mode SQLite does not check. So each use of the database begins with a check of the path, and each commit
ends with one.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

DBMOVED = 1032
"""SQLITE_READONLY_DBMOVED: "the database file has been moved since it was opened"."""

CURE = (
    "nothing is stored until it is back: put it back, or stop the service, run 'flask db restore' with a backup, and "
    "start it again"
)

CURE_OF_THE_WAL = "nothing is stored until it is back: put it back, or restart the service"

Identity = tuple[int, int, int, int]


class DatabaseFile:
    """The file and its WAL as this process has opened them. For any thread.

    One connection, the anchor, is open for as long as the process uses the database. While it is, neither file's number
    can be given to another one, and SQLite, which deletes the WAL with the last connection, makes no new one.
    """

    def __init__(self, path: Path, driver: ModuleType, connect: Callable[[], Any]) -> None:
        """``connect`` opens a connection in WAL mode that any thread may use."""
        self._path, self._wal = os.fspath(path), f"{path}-wal"
        self._name = path.name
        self._driver, self._connect = driver, connect
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._anchor: Any = None
        self._identity: Identity | None = None
        self._is_whole = False
        """Whether what was in the WAL of a lost file is in the file itself."""

    def check(self) -> None:
        """Raises the driver's OperationalError, DBMOVED, while the path leads to another file than the opened one.

        The first call opens the file. The same file may come back; another one never takes its place, because leases
        that are held in memory mean nothing to it.
        """
        if self._anchor is None:
            self._open()
        if self._look() != self._identity:
            self._save_wal()
            raise self._error()
        self._is_whole = False

    def close(self) -> None:
        """Let go of the file, once no other connection is open; the next check() opens what is there then."""
        with self._lock:
            anchor, self._anchor = self._anchor, None
        if anchor is not None:
            anchor.close()

    def after_fork(self) -> None:
        """The anchor is the parent's. It is kept, because closing it here would drop the parent's locks."""
        self._inherited = self._anchor
        self._start_afresh()

    def _open(self) -> None:
        with self._lock:
            if self._anchor is not None:
                return
            before = _number(self._path)
            if before != _pinned.get(self._path, before):
                raise self._error()
            anchor = self._connect()
            anchor.execute("PRAGMA schema_version").fetchall()  # a new file's WAL is made by the first read
            found = self._look()
            if found is None or before not in (None, (found[0], found[2])):
                anchor.close()
                raise self._error()
            self._identity, self._anchor = found, anchor

    def _look(self) -> Identity | None:
        """What the paths lead to; None where one leads nowhere."""
        try:
            file, wal = os.stat(self._path), os.stat(self._wal)  # noqa: PTH116 - on the way of every request
        except OSError:
            return None
        return file.st_ino, wal.st_ino, file.st_dev, wal.st_dev

    def _save_wal(self) -> None:
        """Move what is in the WAL into the lost file, and empty the WAL.

        The file is complete then, wherever it is; and the WAL, should it still be beside the path, is harmless to the
        file that has taken this one's place, which SQLite would otherwise mix it into.
        """
        with self._lock:
            if self._anchor is not None and not self._is_whole:
                with suppress(self._driver.OperationalError):  # the disk is gone as well: nothing can be saved
                    self._anchor.execute("PRAGMA busy_timeout=0")
                    is_busy, _, _ = self._anchor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    self._is_whole = not is_busy

    def _error(self) -> Exception:
        what, cure = self._what_happened()
        error: Exception = self._driver.OperationalError(f"{what} under the running service; {cure}")
        error.sqlite_errorcode = DBMOVED  # type: ignore[attr-defined]  # as the driver's own errors have it
        return error

    def _what_happened(self) -> tuple[str, str]:
        """And the cure."""
        for path, name, cure in ((self._path, self._name, CURE), (self._wal, f"{self._name}-wal", CURE_OF_THE_WAL)):
            try:
                found = os.stat(path)  # noqa: PTH116
            except FileNotFoundError:
                return f"{name} was deleted or moved", cure
            except OSError as error:
                return f"{name} became unreachable ({error.strerror})", cure
            if self._identity is None or found.st_ino not in self._identity[:2]:
                return f"{name} was replaced", cure
        return f"{self._name} was moved, and moved back,", "try again"


_pinned: dict[str, tuple[int, int]] = {}
"""The files that are pinned, by their paths."""


def pin(path: Path) -> None:
    """From now on, this process and those that it forks open no other file at the path, and make none there.

    For a master: a process that it starts in the place of one that died must not begin with another file than those
    that are still at work. Raises OSError.
    """
    if hasattr(os, "O_PATH"):  # keeps the number from being given to another file; macOS gives none away twice
        os.open(path, os.O_PATH | os.O_CLOEXEC)
    found = path.stat()
    _pinned[os.fspath(path)] = found.st_ino, found.st_dev


def is_pinned(path: Path) -> bool:
    return os.fspath(path) in _pinned


def _number(path: str) -> tuple[int, int] | None:
    """Of the file's inode and device; None where there is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_dev
