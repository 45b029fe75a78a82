"""A deadline for PostgreSQL's answers, kept by the client.

The operating system ends a connection whose network is dead. It can't detect a dead server behind a network that lives:
a pooler, a balancer, a stopped machine, a stalled disk. Such a server's answer is waited for until the thread's
deadline; then the connection is closed, because nobody knows what becomes of its transaction.
"""

import contextlib
import math
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import psycopg

from app.db.dialect import Unanswered

T = TypeVar("T")

SHORTEST_CONNECT_TIMEOUT_SECONDS = 2
"""The driver takes whole seconds, and no fewer than this."""

_thread = threading.local()


class AnswerOverdue(psycopg.OperationalError, Unanswered):
    """PostgreSQL did not answer in time; its connection was closed."""

    def __init__(self) -> None:
        super().__init__("PostgreSQL did not answer in time; its connection was closed")


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """In this block, this thread waits no longer than that for connections and answers, all in all.

    An outer block's deadline that is earlier holds too.
    """
    outer = _deadline()
    mine = time.monotonic() + seconds
    _thread.deadline = mine if outer is None else min(outer, mine)
    try:
        yield
    finally:
        _thread.deadline = outer


def _deadline() -> float | None:
    return getattr(_thread, "deadline", None)


class Connection(psycopg.Connection[Any]):
    """One that waits for each answer until the thread's deadline; ``answer_seconds`` where the thread has none."""

    answer_seconds = float("inf")

    @classmethod
    def open(cls, answer_seconds: float, *arguments: Any, **parameters: Any) -> "Connection":
        """As psycopg.connect(), which shares the time that is left between the URL's hosts. Raises AnswerOverdue."""
        end = _deadline()
        seconds = answer_seconds if end is None else min(answer_seconds, end - time.monotonic())
        if seconds < min(1, answer_seconds / 2):  # it would take longer than that
            raise AnswerOverdue
        hosts = str(parameters.get("host", "")).count(",") + 1
        parameters["connect_timeout"] = max(SHORTEST_CONNECT_TIMEOUT_SECONDS, math.ceil(seconds / hosts))
        connection = cls.connect(*arguments, **parameters)
        connection.answer_seconds = answer_seconds
        return connection

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **more: Any) -> T:
        """Raises AnswerOverdue."""
        end = _deadline()
        try:
            return super().wait(_until(end or time.monotonic() + self.answer_seconds, gen), *arguments, **more)
        except AnswerOverdue:
            self.close()
            raise


def _until(end: float, answer: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """psycopg's generator of an answer; it is resumed when bytes have come, and each tenth of a second without any."""
    try:
        wanted = next(answer)
        while True:
            ready = yield wanted
            if time.monotonic() > end:
                raise AnswerOverdue
            wanted = answer.send(ready)
    except StopIteration as complete:
        return complete.value  # type: ignore[no-any-return]
