"""Wake a dispatcher the moment there is something to do, in this process, on this machine, or across PostgreSQL.

Within a process a byte through a socket pair does it. From a process that only publishes, a datagram to every
dispatcher's Unix socket on this machine; where PostgreSQL is and no dispatcher is here, or those here are busy, NOTIFY.
Each is sent after the commit: what it announces can be seen.
A wake-up that gets lost costs one ``poll_seconds``.
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

LONGEST_SOCKET_FOLDER = 60  # sun_path holds 104 to 108 bytes, and the socket's own name needs its part
CHANNEL = "deliveries"

SETTLED_NANOSECONDS = 1_000_000_000
"""A folder that changed within this may change again without its time telling: clocks of file systems are coarse."""


class Wakeup:
    """Where one worker waits. ``open()`` before the first ``wait()``; ``wake()`` from any thread."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._mailbox: socket.socket | None = None
        self._listener: Listener | None = None
        self._told = False
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def open(self) -> None:
        """Be found by other processes."""
        self._listen()
        try:
            self._mailbox = _bind(socket_folder(self.database))
        except OSError as error:
            log.warning("other processes can't wake this dispatcher, only the poll: %s", error)

    def wake(self) -> None:
        """Wake the worker that waits here."""
        with contextlib.suppress(OSError):  # full: it has been woken already; closed: it is gone
            self._writer.send(b"!")

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds. Returns whether somebody called."""
        self._listen()
        ends = {end.fileno(): end for end in (self._reader, self._mailbox, self._listener) if end is not None}
        readiness = select.poll()  # select() knows no descriptor beyond 1023
        for descriptor in ends:
            readiness.register(descriptor, select.POLLIN)
        called = readiness.poll(max(0.0, timeout) * 1000)
        for descriptor, _ in called:
            self._drain(ends[descriptor])
        return bool(called)

    def close(self) -> None:
        if self._mailbox is not None:
            with contextlib.suppress(OSError):
                Path(self._mailbox.getsockname()).unlink()
        for end in (self._mailbox, self._listener, self._reader, self._writer):
            if end is not None:
                end.close()
        self._mailbox = self._listener = None

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

    def _listen(self) -> None:
        """Where the database has listeners, be one. While the server is away the poll serves."""
        try:
            if self._listener is None:
                self._listener = self.database.dialect.listen(CHANNEL)
            if self._listener is not None:
                self._listener.fileno()
        except DatabaseUnavailable as error:
            self._stop_listening(error.reason)
        else:
            self._told = False

    def _stop_listening(self, why: object) -> None:
        """Say so once, however often it is tried again."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if not self._told:
            self._told = True
            log.warning("other processes can't wake this dispatcher, only the poll: %s", why)


class WakeupSender:
    """Wakes the dispatchers of other processes. For any thread."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._folder = socket_folder(database)
        self._seen = 0
        self._mailboxes: list[str] = []

    def wake(self, *, everywhere: bool = False) -> None:
        """Wake those on this machine; ``everywhere`` also those on others, who are woken too where none is here.

        Raises nothing: what is announced is stored, and the poll finds it.
        """
        try:
            reached = self._send_datagrams()
            if everywhere or not reached:
                self.database.dialect.notify(CHANNEL)
        except (OSError, DatabaseUnavailable) as error:
            log.debug("can't wake the others: %s", error)

    def _send_datagrams(self) -> int:
        """Returns how many dispatchers were reached."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
        if changed != self._seen:
            self._mailboxes = [str(path) for path in self._folder.iterdir()]
            settled = time.time_ns() - changed > SETTLED_NANOSECONDS
            self._seen = changed if settled else 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            reached = 0
            for mailbox in self._mailboxes:
                try:
                    sender.sendto(b"!", mailbox)
                    reached += 1
                except BlockingIOError:  # it has been called often enough
                    reached += 1
                except ConnectionRefusedError:  # its process was killed
                    Path(mailbox).unlink(missing_ok=True)
                except OSError as error:
                    log.debug("can't wake %s: %s", mailbox, error)
        return reached


def socket_folder(database: Database) -> Path:
    """Beside the database file, so that whoever shares the one finds the other. For PostgreSQL, and where that path is
    too long for a socket, in the temporary folder, under a name made from the database's."""
    name = str(database.url)  # without the password
    if (file := database.dialect.file) is not None:
        name = str(file)
        beside = file.with_name(f"{file.name}-wake")
        if len(str(beside)) <= LONGEST_SOCKET_FOLDER:
            return beside
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"wake-{os.getuid()}-{digest}"


def _bind(folder: Path) -> socket.socket:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.parent == Path(tempfile.gettempdir()) and folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's")
    mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mailbox.bind(str(folder / f"{os.getpid()}-{uuid7()[-8:]}"))
    mailbox.setblocking(False)
    return mailbox
