"""Celery's soft time limit, which may interrupt a receiver, and nothing else.

A worker sends SIGUSR1 to the process whose task has reached its soft limit. Where the signal came in the middle of the
settle, a mail that is sent would be taken for one of unknown outcome.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from app.errors import InDoubt


class TimeLimit:
    """Ignores the signal but where it is ``in_force()``.

    At the hard limit, and at a stop that does not wait, SIGTERM comes before SIGKILL. In a receiver that is an
    interruption as well; then the process ends.
    """

    def __init__(self) -> None:
        self._terminated = False

    def install(self) -> None:
        """Before each message: Celery sets a handler of its own once the process has started."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """A receiver runs, and may be interrupted: InDoubt is raised in it, because nobody knows how far it came."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.signal(signal.SIGUSR1, _interrupt)
        celerys = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, celerys)

    def end_if_terminated(self) -> None:
        """By Celery's own handler, once the interruption is stored."""
        if self._terminated:
            os.kill(os.getpid(), signal.SIGTERM)

    def _terminate(self, _: int, __: FrameType | None) -> None:
        self._terminated = True
        raise InDoubt("its worker ended the receiver's process")


def _interrupt(_: int, __: FrameType | None) -> None:
    raise InDoubt("the receiver has not returned within its time limit")
