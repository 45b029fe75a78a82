"""A log's pipe or socket, opened again without blocking: its reader may stop, and no order waits for that."""

import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TextIO

WAIT_SECONDS = 1.0
"""How long a reader that is behind is waited for, once; then lines are dropped until it reads again."""

PROCESS = logging.getLogger("app.process")


def dropping(stream: TextIO) -> "TextIO | DroppingStream":
    """A stream to the same place that drops lines rather than wait for ever; the same one where it is a file, a
    terminal, or a pipe that another user made."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            return DroppingStream(*_to_pipe(descriptor))
        if stat.S_ISSOCK(mode):
            return DroppingStream(*_to_socket(descriptor))
    except (OSError, ValueError):  # it is closed, or has no descriptor
        pass
    return stream


class DroppingStream:
    """A text stream, as a log's handler wants it, over ``send``, which raises BlockingIOError rather than wait."""

    def __init__(self, descriptor: int, send: Callable[[memoryview], int]) -> None:
        self._descriptor, self._send = descriptor, send
        self._dropped = 0
        self._torn = False

    def write(self, text: str) -> None:
        """Raises OSError where there is no reader any more."""
        if self._torn:
            text = f"\n{text}"
        rest = memoryview(text.encode(errors="backslashreplace"))
        whole = len(rest)
        while rest:
            try:
                rest = rest[self._send(rest) :]
            except BlockingIOError:
                if self._dropped or not self._has_room():
                    self._torn = self._torn or len(rest) < whole
                    self._dropped += 1
                    return
        self._torn = False
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            PROCESS.warning("lines were dropped, because nobody read them", extra={"facts": {"count": dropped}})

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        return self._descriptor

    def _has_room(self) -> bool:
        waiting = select.poll()  # select() knows no descriptor beyond 1023
        waiting.register(self._descriptor, select.POLLOUT)
        return bool(waiting.poll(WAIT_SECONDS * 1000))


def _to_pipe(descriptor: int) -> tuple[int, Callable[[memoryview], int]]:
    """Opened again, because whether writing waits is a property that all who share an opened pipe share."""
    own = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
    return own, lambda data: os.write(own, data)


def _to_socket(descriptor: int) -> tuple[int, Callable[[memoryview], int]]:
    own = socket.socket(fileno=os.dup(descriptor))
    return own.fileno(), lambda data: own.send(data, socket.MSG_DONTWAIT)
