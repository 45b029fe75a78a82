"""Wake-up: a dispatcher waits here, and is woken the moment that deliveries are due.

Its own process sends a byte through a socket pair; other processes on this machine send a datagram to the dispatcher's
Unix socket (``wakeup_sender``); other machines on the same PostgreSQL send NOTIFY. Each is sent after the commit, so
the deliveries can be seen. A lost wake-up costs one ``poll_seconds``.
"""

import contextlib
import hashlib
import logging
import os
import select
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from app.clock import uuid7
from app.db import Database, Listener
from app.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

LONGEST_SOCKET_FOLDER = 60
"""Characters: an address of a Unix socket holds 104 to 108, and the socket's own name needs its part."""

IN_TEMPORARY_FOLDER = "wake-"
"""How the sockets' folder is called there, where anybody may have made one of this name."""

CHANNEL = "deliveries"
"""Of PostgreSQL's NOTIFY."""

LISTENER_CHECK_SECONDS = 15.0
"""Between looks whether the server is still there that notifications come from."""


class Wakeup:
    """Where one worker waits. ``open()`` before the first ``wait()``; ``wake()`` from any thread."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._datagrams: socket.socket | None = None
        self._listener: Listener | None = None
        self._next_check = 0.0
        self._warned = False
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def open(self) -> None:
        """Let other processes on this machine find this dispatcher."""
        try:
            self._datagrams = _bind(socket_folder(self.database))
        except OSError as error:
            if self.database.dialect.file is not None:  # a server's NOTIFY serves other processes too
                log.warning("other processes can't wake this dispatcher, only the poll: %s", error)

    def wake(self) -> None:
        """Wake the worker that waits here."""
        with contextlib.suppress(OSError):  # full: it has been woken already; closed: it has ended
            self._writer.send(b"!")

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds. Returns whether it was woken, or may have been and has not heard it."""
        if self._listen():
            return True
        ends = {end.fileno(): end for end in (self._reader, self._datagrams, self._listener) if end is not None}
        readiness = select.poll()  # select() knows no descriptor beyond 1023
        for descriptor in ends:
            readiness.register(descriptor, select.POLLIN)
        ready = readiness.poll(max(0.0, timeout) * 1000)
        for descriptor, _ in ready:
            self._drain(ends[descriptor])
        return bool(ready)

    def close(self) -> None:
        if self._datagrams is not None:
            with contextlib.suppress(OSError):
                Path(self._datagrams.getsockname()).unlink()
        for end in (self._datagrams, self._listener, self._reader, self._writer):
            if end is not None:
                end.close()
        self._datagrams = self._listener = None

    def _drain(self, end: Any) -> None:
        if self._listener is not None and end is self._listener:
            try:
                self._listener.drain()
            except DatabaseUnavailable as error:
                self._stop_listening(error.reason)
        else:
            with contextlib.suppress(BlockingIOError):
                while end.recv(16):
                    pass

    def _listen(self) -> bool:
        """Hear the database's notifications, where it has any, and see now and then that they can be heard: a
        connection that broke without a word looks like one on which nothing is said.

        Returns whether notifications may have been missed. While the server is away the poll serves.
        """
        try:
            is_due = time.monotonic() >= self._next_check
            if self._listener is None:
                self._listener = self.database.dialect.listen(CHANNEL)
            elif is_due:
                self._listener.check()
            else:
                self._listener.fileno()
                return False
        except DatabaseUnavailable as error:
            self._stop_listening(error.reason)
            return False
        self._warned = False
        self._next_check = time.monotonic() + LISTENER_CHECK_SECONDS
        return self._listener is not None

    def _stop_listening(self, why: object) -> None:
        """Warn once, however often it is tried again."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if not self._warned:
            self._warned = True
            log.warning("other processes can't wake this dispatcher, only the poll: %s", why)


def socket_folder(database: Database) -> Path | None:
    """Where the dispatchers of a database have their sockets on this machine.

    It lies beside the database's file, so that all who share the file find it. For PostgreSQL, and where that path is
    too long for a socket, it lies in the temporary folder, under a name made from the database's. None where no
    temporary folder is writable: then PostgreSQL's NOTIFY serves, or the poll.
    """
    name = str(database.url)  # without the password
    if (file := database.dialect.file) is not None:
        name = str(file)
        beside = file.with_name(f"{file.name}-wake")
        if len(str(beside)) <= LONGEST_SOCKET_FOLDER:
            return beside
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    try:
        return Path(tempfile.gettempdir()) / f"{IN_TEMPORARY_FOLDER}{os.getuid()}-{digest}"
    except FileNotFoundError:
        return None


def _bind(folder: Path | None) -> socket.socket:
    """Raises OSError."""
    if folder is None:
        raise FileNotFoundError("there is no temporary folder that can be written to")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.name.startswith(IN_TEMPORARY_FOLDER) and folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(str(folder / f"{os.getpid()}-{uuid7()[-8:]}"))
    bound.setblocking(False)
    return bound
