"""Wakes the dispatchers of other processes."""

import logging
import os
import socket
import time
from pathlib import Path

from app.db import Database
from app.engine.inprocess.wakeup import CHANNEL, socket_folder
from app.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

COARSE_CLOCK_NANOSECONDS = 1_000_000_000
"""A folder that changed within this may change again without its time telling: clocks of file systems are coarse."""


class WakeupSender:
    """Sends wake-ups for one database. For any thread."""

    def __init__(self, database: Database) -> None:
        self.database = database
        folder = socket_folder(database)
        self._folder = None if folder is None else os.fspath(folder)
        self._folder_time = 0
        self._sockets: list[str] = []

    def wake(self, *, everywhere: bool = False) -> None:
        """Wake the dispatchers on this machine; where there is none, or ``everywhere``, those on other machines too.

        Raises nothing: what it tells of is stored, and the poll finds it.
        """
        try:
            reached = self._send_datagrams()
            if everywhere or not reached:
                self.database.dialect.notify(CHANNEL)
        except (OSError, DatabaseUnavailable) as error:
            log.debug("can't wake the others: %s", error)

    def _send_datagrams(self) -> int:
        """Returns how many dispatchers were reached."""
        if not self._find_sockets():
            return 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            return sum(_send(sender, path) for path in self._sockets)

    def _find_sockets(self) -> bool:
        """Read the folder again when it has changed. Returns whether there is one."""
        if self._folder is None:
            return False
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116 - on the way of every commit
        except FileNotFoundError:
            return False
        if changed != self._folder_time:
            self._sockets = [entry.path for entry in os.scandir(self._folder)]
            certain = time.time_ns() - changed > COARSE_CLOCK_NANOSECONDS
            self._folder_time = changed if certain else 0
        return True


def _send(sender: socket.socket, path: str) -> bool:
    """Returns whether a dispatcher was reached. The socket of a process that was killed is removed."""
    try:
        sender.sendto(b"!", path)
    except BlockingIOError:  # full: it has been woken already
        return True
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
        return False
    except OSError as error:
        log.debug("can't wake %s: %s", path, error)
        return False
    return True
