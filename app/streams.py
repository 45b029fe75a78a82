"""WSGI middleware for answers that are streams: a failing one costs only its own connection, and a stop ends all.

A stream is an answer whose parts a generator yields. Each part leaves at once. When the client has gone away, the next
part closes the generator; so one that waits for something yields an empty comment, or the like, every few seconds.
"""

import contextlib
import errno
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""How long a stopping process lets streams come to their own end; then each is cut at its next part."""

PART_SECONDS = 5.0
"""How long a part may take to leave. For a client that does not read, its thread would wait for ever, and so a stop."""

PIECE_BYTES = 16_384
"""A larger part leaves in pieces, each within PART_SECONDS: so a slow client is not cut off."""


class Streams:
    """Wraps a WSGI application. ``is_stopping`` tells whether the process has been asked to end."""

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        is_stopping: Callable[[], bool],
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._is_stopping, self._seconds = app, is_stopping, seconds
        self._deadline: float | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        parts = self._app(environ, start_response)
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(parts, list | tuple) or (isinstance(file_wrapper, type) and isinstance(parts, file_wrapper)):
            return parts
        return _Stream(parts, self.must_end, environ.get("gunicorn.socket"))

    def must_end(self) -> bool:
        """Whether streams are to end now. The first call after the stop began starts the clock for all of them."""
        if not self._is_stopping():
            return False
        if self._deadline is None:
            self._deadline = self._seconds() + STOP_SECONDS
        return self._seconds() >= self._deadline


class _Stream:
    def __init__(self, parts: Iterable[bytes], must_end: Callable[[], bool], client: socket.socket | None) -> None:
        self._parts = parts
        self._iterator: Iterator[bytes] = iter(parts)
        self._must_end = must_end
        self._client = client
        self._began = False
        self._has_limit = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._began and self._must_end():
            raise self._broken_off("the process is stopping")
        if self._began and not self._has_limit:  # an answer of one part needs none
            self._limit_sending(PART_SECONDS)
        try:
            part = next(self._iterator)
        except (StopIteration, OSError):
            raise
        except Exception:
            if not self._began:
                raise  # nothing has left yet: the server can still answer 500
            log.exception("a stream failed")
            raise self._broken_off("its generator raised") from None
        if len(part) > PIECE_BYTES:
            if not self._has_limit:
                self._limit_sending(PART_SECONDS)
            self._iterator = itertools.chain(_pieces(part), self._iterator)
            part = next(self._iterator)
        self._began = self._began or bool(part)
        return part

    def close(self) -> None:
        """Called by the server at the end, however that came about."""
        if self._has_limit:
            self._limit_sending(None)
        if hasattr(self._parts, "close"):
            self._parts.close()

    def _limit_sending(self, seconds: float | None) -> None:
        """Sending raises TimeoutError after so long: see ``serving.SpreadingWorker``."""
        self._has_limit = seconds is not None
        if self._client is not None:
            with contextlib.suppress(OSError):  # it is closed
                self._client.settimeout(seconds)

    def _broken_off(self, reason: str) -> ConnectionResetError:
        """An error that a server takes for a client that went away: it closes the connection without the stream's end
        mark, so the client can tell that something is missing.

        gunicorn waits in its main loop for a client to close its side, unless the connection is shut down already. Any
        other error makes it close the connection twice, and count one too many as closed.
        """
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
        return ConnectionResetError(errno.ECONNRESET, f"a stream was broken off: {reason}")


def _pieces(part: bytes) -> Iterator[bytes]:
    for start in range(0, len(part), PIECE_BYTES):
        yield part[start : start + PIECE_BYTES]
