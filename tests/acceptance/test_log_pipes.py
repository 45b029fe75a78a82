"""The log is a pipe, as under Docker, or a socket, as under systemd, and nobody reads it."""

import contextlib
import fcntl
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import Serve
from tests.support.service import FLASK, GUNICORN, Client, Service, wait_until

pytestmark = pytest.mark.inprocess("how each command logs")

LOGGING_REQUESTS = ("gunicorn", "--access-logfile=-", "wsgi:app")
ORDERS = 200
"""More than enough to fill the pipe."""


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """The end to read from and the end to write to."""
    if request.param == "pipe":
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    else:
        one, other = socket.socketpair()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reader, writer = one.detach(), other.detach()
    yield reader, writer
    os.close(reader)
    os.close(writer)


class Log:
    """What comes out at the reader's end."""

    def __init__(self, reader: int) -> None:
        os.set_blocking(reader, False)
        self._reader, self._seen = reader, b""

    def read(self) -> str:
        """All that came so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader, 65536):
                self._seen += data
        return self._seen.decode()


def place(service: Service, name: str, count: int) -> float:
    """Place orders one after the other. Returns the longest that one of them took, in seconds."""
    longest = 0.0
    with contextlib.closing(Client(service.port)) as client:
        for number in range(count):
            began = time.monotonic()
            assert client.post(order_id=f"{name}{number}", user_id="2", total_price=3).status == 201
            longest = max(longest, time.monotonic() - began)
    return longest


def wait_for_deliveries(service: Service) -> None:
    wait_until(lambda: not service.get("/api/orders?notification=pending").body["orders"], "all deliveries")


@pytest.mark.parametrize("command", [GUNICORN, LOGGING_REQUESTS, FLASK], ids=" ".join)
def test_orders_go_on_while_nobody_reads_the_log_and_what_was_dropped_is_told(
    serve: Serve, ends: tuple[int, int], command: tuple[str, ...]
) -> None:
    reader, writer = ends
    service = serve(*command, web_concurrency=2 if "gunicorn" in command else 1, mail_backend="memory")
    service.launch(writer).wait_for_answer("/readyz")

    assert place(service, "unread", ORDERS) < 10
    wait_for_deliveries(service)

    log = Log(reader)
    again = (f"read{number}-" for number in itertools.count())  # the lines of a first one may find the pipe full again
    for words in ("order_id=read", "lines were dropped, because nobody read them"):
        wait_until(lambda words=words: place(service, next(again), 1) and words in log.read(), words)  # type: ignore[misc]

    service.signal(signal.SIGTERM)
    wait_until(lambda: log.read() and service.ended, "its end")
    assert service.exit_code() == 0


def test_orders_go_on_when_the_logs_reader_has_died(serve: Serve) -> None:
    reader, writer = os.pipe()
    service = serve(*LOGGING_REQUESTS, web_concurrency=2, mail_backend="memory").launch(writer)
    os.close(writer)
    service.wait_for_answer("/readyz")
    os.close(reader)
    place(service, "unread", ORDERS)
    wait_for_deliveries(service)
    service.stop()
