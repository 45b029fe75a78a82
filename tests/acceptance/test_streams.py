"""Answers that are streams, over real sockets: tests/support/streaming.py under the service's gunicorn.conf.py."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Serve
from tests.support.service import Service, wait_until
from tests.support.streaming import PART, SECOND_PART_SECONDS
from tests.support.wire import Wire

pytestmark = pytest.mark.inprocess("of HTTP alone")

COMMAND = ("gunicorn", "tests.support.streaming:create()")
END_MARK = b"0\r\n\r\n"
GRACE_SECONDS = 30


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One process, so that whatever harms it is seen by all its clients."""
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        made = Service(Path(folder), *COMMAND, mail_backend="memory", web_concurrency=1, poll_seconds=60)
        made.start()
        first = made.workers()
        yield made
        assert made.workers() == first, "the worker had to be replaced"
        made.stop()
        made.close()


def get(service: Service, path: str) -> Wire:
    return Wire(service.port).send(f"GET {path} HTTP/1.1\r\nHost: orders.example\r\n\r\n".encode())


def test_a_part_leaves_at_once(service: Service) -> None:
    began = time.monotonic()
    with get(service, "/slow") as wire:
        wire.receive_until(PART.encode())
        assert time.monotonic() - began < SECOND_PART_SECONDS / 2
        rest = wire.receive_until(END_MARK)
    assert PART.encode() in rest
    assert time.monotonic() - began >= SECOND_PART_SECONDS


def test_a_stream_that_raises_ends_its_own_connection_and_no_other(service: Service) -> None:
    """Though its clients stay: gunicorn would wait for each of them in its main loop. There are more than threads."""
    clients = [get(service, "/raises") for _ in range(20)]
    other = get(service, "/slow")
    began = time.monotonic()
    cut = [client.all() for client in clients]
    whole = other.receive_until(END_MARK)
    assert time.monotonic() - began < SECOND_PART_SECONDS + 2
    for client in (*clients, other):
        client.__exit__()

    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") and PART.encode() in answer for answer in cut)
    assert not any(answer.endswith(END_MARK) for answer in cut), "nobody could tell that something is missing"
    assert whole.count(PART.encode()) == 2
    assert service.log.count("a stream failed") == len(clients)


def test_a_stream_that_raises_before_its_first_part_is_answered_500(service: Service) -> None:
    with get(service, "/raises-at-once") as wire:
        assert wire.answer("GET").status == 500


def test_a_client_that_goes_away_closes_the_generator(service: Service) -> None:
    before = service.log.count("stream closed")
    for _ in range(4):
        with get(service, "/endless") as wire:
            wire.receive_until(b"data: 0")
    wait_until(lambda: service.log.count("stream closed") == before + 4, "the generators to be closed")


def test_a_stop_ends_open_streams_within_the_grace_time(serve: Serve) -> None:
    service = serve(*COMMAND, mail_backend="memory").start()
    with get(service, "/endless") as wire:
        wire.receive_until(b"data: 0")
        assert service.stop() < GRACE_SECONDS / 2
        assert not wire.all().endswith(END_MARK)
    assert "stream closed" in service.log
    assert "dispatcher stopped" in service.log
