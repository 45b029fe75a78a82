"""Where a request ends: one answer for each, whatever the bytes are, and however the network cuts them."""

import contextlib
import itertools
import random
import re
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser

from tests.support.service import Service, wait_until
from tests.support.wire import HEAD, Wire, body, posting

pytestmark = pytest.mark.inprocess("of HTTP alone")

STREAMS = 20_000
STREAMS_OVER_SOCKETS = 300
SEED = 20261127
CONFIG = Config()

FRAMINGS = (
    b"Content-Length: %d", b"content-length: %d", b"Content-Length:%d", b"Content-Length: %023d",
    b"Content-Length: +%d",
    b"Content-Length: %d, %d", b"Content-Length: %d\r\nContent-Length: %d", b"Content-Length : %d",
    b"Content_Length: %d",
    b"Content-Length: %d\r\nTransfer-Encoding: chunked", b"Content-Length: %d \t", b"Content-Length: \t%d",
)  # fmt: skip
CHUNKINGS = (
    b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: xchunked",
)  # fmt: skip
SIZES = (b"%x", b"%X", b"000000000000000000000%x", b"%x;a=b", b"%x ;a", b"0x%x", b"+%x", b"%x \t", b'%x;a="\r"')
TRAILERS = (b"", b"", b"X-Trailer: 1\r\n", b"no trailer\r\n", b"X: a\nY: b\r\n")
BODIES = (
    b"",
    b"{}",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Content-Length: 9\r\n\r\n",
)
SPOILS = (b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b"\xff", b"0", b"0\r\n\r\n")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        made = Service(Path(folder), mail_backend="memory", poll_seconds=60)
        made.start()
        first = wait_until(lambda: len(found := made.workers()) == 3 and found, "all workers")
        yield made
        assert made.workers() == first, "a worker had to be replaced"
        made.stop()
        made.close()
    assert "Traceback" not in made.log, made.log


# Generated streams


def stream(dice: random.Random) -> bytes:
    """One to three requests, most of them well-formed or nearly so."""
    data = b"".join(request(dice) for _ in range(dice.randint(1, 3)))
    if dice.random() < 0.3:
        at = dice.randrange(len(data))
        data = data[:at] + dice.choice(SPOILS) + data[at + dice.randrange(2) :]
    return data


def request(dice: random.Random) -> bytes:
    content = dice.choice(BODIES)
    fields = [dice.choice([b"POST /api/create_order HTTP/1.1", b"GET /healthz HTTP/1.1", b"PUT /nowhere HTTP/1.1"])]
    fields.append(b"Host: x")
    match dice.randrange(3):
        case 0:
            return b"\r\n".join([*fields, b"", b""])
        case 1:
            framing = dice.choice(FRAMINGS)
            fields.append(framing % ((len(content),) * framing.count(b"%")))
            return b"\r\n".join([*fields, b"", b""]) + content
    fields.append(dice.choice(CHUNKINGS))
    chunk = dice.choice(SIZES) % len(content) + b"\r\n" + content + b"\r\n" if content else b""
    return b"\r\n".join([*fields, b"", b""]) + chunk + b"0\r\n" + dice.choice(TRAILERS) + b"\r\n"


def cut(data: bytes, dice: random.Random) -> list[bytes]:
    places = sorted({0, len(data), *(dice.randrange(len(data)) for _ in range(dice.randint(1, 8)))})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def taken(pieces: list[bytes]) -> list[object]:
    """What gunicorn's parser takes a stream for: each request with its body, and whether it refused the rest."""
    parser = RequestParser(CONFIG, iter(pieces), ("127.0.0.1", 1))
    found: list[object] = []
    try:
        for each in parser:
            found.append((each.method, each.uri, each.headers))
            found.append(each.body.read())
    except (ParseException, OSError):
        found.append("refused")
    return found


def test_a_stream_is_taken_for_the_same_requests_wherever_it_is_cut() -> None:
    dice = random.Random(SEED)
    for _ in range(STREAMS):
        data = stream(dice)
        pieces = cut(data, dice)
        assert taken(pieces) == taken([data]), pieces


def test_the_service_answers_a_stream_alike_wherever_it_is_cut_and_once_for_each_request(service: Service) -> None:
    dice = random.Random(SEED + 1)
    streams = [(data := stream(dice), cut(data, dice)) for _ in range(STREAMS_OVER_SOCKETS)]

    def both(each: tuple[bytes, list[bytes]]) -> tuple[list[bytes], list[bytes]]:
        return statuses(service, [each[0]]), statuses(service, each[1])

    with ThreadPoolExecutor(4) as threads:
        for (data, _), (whole, in_pieces) in zip(streams, threads.map(both, streams), strict=True):
            assert whole == in_pieces, data
            assert len(whole) <= len(taken([data])), data


def statuses(service: Service, pieces: list[bytes]) -> list[bytes]:
    with Wire(service.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # the service may have closed after an earlier piece
            for piece in pieces:
                wire.send(piece)
            wire.socket.shutdown(socket.SHUT_WR)
        return re.findall(rb"HTTP/1\.1 (\d{3}) ", wire.all())


# Single cases


def test_a_length_with_zeros_before_it_is_that_length(service: Service) -> None:
    """The body is a request that somebody hides; a proxy that reads the length as it is would not see it."""
    hidden = b"GET /api/users/smuggled HTTP/1.1\r\nHost: x\r\nA: bcd\r\n\r\n"
    assert len(hidden) == 53
    with Wire(service.port) as wire:
        wire.send(HEAD + b"Content-Length: 00000000000000000000053\r\n\r\n")
        wire.send(hidden)
        wire.socket.shutdown(socket.SHUT_WR)
        assert re.findall(rb"HTTP/1\.1 (\d{3}) ", wire.all()) == [b"400"]


def test_an_order_of_which_a_part_came_is_not_stored(service: Service) -> None:
    content = body(order_id="cut-off")
    with Wire(service.port) as wire:
        wire.send(HEAD + b"Content-Length: 1000\r\n\r\n" + content)
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.answer().status == 400
    with contextlib.closing(sqlite3.connect(service.folder / "instance" / "orders.db")) as database:
        assert database.execute("SELECT count(*) FROM orders WHERE order_id = 'cut-off'").fetchone() == (0,)


@pytest.mark.parametrize("target", ["GET /healthz", "GET /nowhere", "PUT /api/create_order"])
@pytest.mark.parametrize("content", [b"0\r\nno trailer\r\n\r\n", b"x\r\n", b"2\r\n{}x\r\n0\r\n\r\n"])
def test_a_body_that_nobody_reads_and_that_is_none_gets_no_second_answer(
    service: Service, target: str, content: bytes
) -> None:
    """The next client on a proxy's connection would take that answer for its own."""
    with Wire(service.port) as wire:
        wire.send(f"{target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + content)
        found = wire.all()
    assert len(re.findall(rb"HTTP/1\.1 (\d{3}) ", found)) == 1


def test_a_request_behind_an_order_is_answered_behind_it(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.send(posting(body()) + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [wire.answer().status, wire.answer("GET").status] == [201, 200]
