"""Clients that want to harm: too many, too large, or not speaking HTTP. What holds without a proxy before the service.

Slow clients: test_proxies.py. Real processes on loopback. Every wait has a limit, and what is opened is closed.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import sqlite3
import stat
import struct
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.conftest import Serve
from tests.support.service import Client, Service, wait_until
from tests.support.wire import HEAD, Wire, body, numbers, order, posting

pytestmark = pytest.mark.inprocess("of HTTP alone")

PROMPT = 2.0
"""Seconds that anybody's order may take meanwhile; the usual is some milliseconds, on a machine that has other work."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One for most tests here: what one client does to it, the next would notice."""
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        made = Service(Path(folder), mail_backend="memory", poll_seconds=60)
        made.start()
        first = wait_until(lambda: len(found := made.workers()) == 3 and found, "all workers")
        yield made
        pids, log = made.workers(), made.log
        made.stop()
        made.close()
    assert pids == first, "a worker had to be replaced"
    assert "Traceback" not in log, log


def seconds_for_an_order(service: Service) -> float:
    began = time.monotonic()
    with contextlib.closing(Client(service.port)) as client:
        assert client.post(**order()).status == 201
    return time.monotonic() - began


def status(response: http.client.HTTPResponse) -> int:
    """Of an answer that tells nothing of what is inside: JSON with the headers that every answer has."""
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["Cache-Control"] == "no-store"
    content = json.loads(response.content)  # type: ignore[attr-defined]
    if response.status >= 400:
        assert response.headers["Content-Type"] == "application/problem+json"
        assert content["status"] == response.status
        assert content["detail"]
    return response.status


def test_a_request_in_single_bytes_is_one(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in posting(body()):
            wire.send(bytes([byte]))
        assert status(wire.answer()) == 201


def test_who_goes_away_in_the_middle_leaves_nothing(service: Service) -> None:
    """By a reset, or by ending its side: neither an order nor an open file."""
    seconds_for_an_order(service)
    before = open_files(service)
    stored = len(order_ids(service))
    for number in range(200):
        with Wire(service.port) as wire:
            wire.send(posting(body())[: -1 - number % 40])
            if number % 2:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: open_files(service) <= before + 4, "the files of those who went away to be closed")
    assert len(order_ids(service)) == stored


def open_files(service: Service) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in service.workers())  # noqa: PTH208 - it is no folder


def order_ids(service: Service) -> list[str]:
    with contextlib.closing(sqlite3.connect(service.folder / "instance" / "orders.db")) as database:
        return [row[0] for row in database.execute("SELECT order_id FROM orders")]


# Half open, pipelined, chunked: who keeps to the rules is served


def test_half_a_request_is_refused_even_where_its_json_is_whole(service: Service) -> None:
    with Wire(service.port) as wire:
        whole = body(order_id="cut-off")
        wire.send(posting(whole + b" " * 10)[:-10])
        wire.socket.shutdown(socket.SHUT_WR)
        assert status(wire.answer()) == 400
    assert "cut-off" not in order_ids(service)


def test_who_has_ended_its_side_gets_its_answer(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.send(posting(body()))
        wire.socket.shutdown(socket.SHUT_WR)
        assert status(wire.answer()) == 201


def test_requests_sent_without_waiting_are_answered_in_their_order(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.send(b"".join(posting(body(order_id=f"p{n}-{next(numbers)}")) for n in range(20)) + posting(b"{")[:-1])
        found = [wire.answer().headers["Location"] for _ in range(20)]
        assert [re.sub(".*/(p[0-9]+)-.*", r"\1", location or "") for location in found] == [f"p{n}" for n in range(20)]


def test_who_asks_first_whether_to_send_is_told_to(service: Service) -> None:
    content = body()
    with Wire(service.port) as wire:
        wire.send(posting(content, b"Expect: 100-continue")[: -len(content)])
        assert wire.socket.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.send(content)
        assert status(wire.answer()) == 201


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_may_come_in_chunks(service: Service, size: int) -> None:
    content = body()
    chunks = [content[i : i + size] for i in range(0, len(content), size)]
    framed = b"".join(b"%x; name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    with Wire(service.port) as wire:
        for _ in range(2):  # the second finds the connection as the first left it
            wire.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\nX-Trailer: 1\r\n\r\n")
            assert status(wire.answer()) in (200, 201)


# Too large, or no HTTP


@pytest.mark.parametrize(
    "request_, expected",
    [
        (posting(body().ljust(64 * 1024)), 201),
        (posting(body().ljust(64 * 1024 + 1)), 413),
        (posting(body().ljust(200_000)), 413),
        (posting(b"x" * 10_000_000), 413),
        (HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n%s\r\n" % (b" " * 0x8000) * 40, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 70_000, 413),
        (b"GET /api/orders?user_id=" + b"a" * 4000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 422),
        (b"GET /api/orders?user_id=" + b"a" * 4100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 8000 + b"\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 8200 + b"\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 1_000_000, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 49 + b"\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 50 + b"\r\n", 431),
    ],
    ids=lambda value: str(value)[-30:] if isinstance(value, int) else f"{len(value)} bytes {value[-20:]!r}",
)
def test_what_is_too_large_is_refused_and_the_client_can_read_why(
    service: Service, request_: bytes, expected: int
) -> None:
    with Wire(service.port) as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(request_)
        assert status(wire.answer("GET" if request_.startswith(b"GET") else "POST")) == expected


GET = b"GET /api/orders HTTP/1.1\r\n"
NO_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500 + b"\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/3.0": b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "SMTP": b"EHLO orders.example\r\nMAIL FROM:<a@b>\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a PROXY line": b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n" + GET + b"Host: a\r\n\r\n",
    "a PROXY block": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x7f\x00\x00\x01" * 3 + GET + b"Host: a\r\n\r\n",
    "NULs": b"\0" * 1000 + b"\r\n\r\n",
    "empty lines": b"\r\n" * 100,
    "bare LF": GET.replace(b"\r", b"") + b"Host: a\n\n\r\n\r\n",
    "bare CR": GET + b"Host: a\rX: b\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a folded header": GET + b"Host: a\r\nX: a\r\n b\r\n\r\n",
    "a header without a colon": GET + b"Host: a\r\nX\r\n\r\n",
    "a blank before the colon": GET + b"Host : a\r\n\r\n",
    "a header without a name": GET + b"Host: a\r\n: a\r\n\r\n",
    "a NUL in a header": GET + b"Host: a\r\nX: a\0b\r\n\r\n",
    "two hosts": GET + b"Host: a\r\nHost: b\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths in one": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -2\r\n\r\n{}",
    "a length with a sign": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a length in hex": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with a line": HEAD + b"Content-Length: 1_0\r\n\r\n{}",
    "a length in superscript": HEAD + b"Content-Length: \xb2\r\n\r\n{}",
    "an empty length": HEAD + b"Content-Length: \r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks and then gzip": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "only gzip": HEAD + b"Transfer-Encoding: gzip\r\n\r\n\x1f\x8b",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n{}",
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding in quotes": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a coding with a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding with a blank before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a chunk without a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n",
    "a chunk of negative size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk of size 0x2": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk of size 1_0": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1_0\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer than it says": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "an unknown expectation": HEAD + b"Content-Length: 2\r\nExpect: a-miracle\r\n\r\n{}",
    "a blank in the address": b"GET /api/ orders HTTP/1.1\r\nHost: a\r\n\r\n",
    "letters beyond ASCII in the address": "GET /api/orders/订单 HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
}

IGNORED = {
    "an address that is none": b"GET /api//[ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header with a line that means another": GET + b"Host: a\r\nContent_Length: 5\r\nX_Forwarded_For: ::1\r\n\r\n",
    "a script name": GET + b"Host: a\r\nSCRIPT_NAME: /elsewhere\r\nConnection: close\r\n\r\n",
    "a path in a header": b"GET /api/nothing HTTP/1.1\r\nHost: a\r\nPATH_INFO: /operator/deliveries\r\n\r\n",
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_what_is_no_http_is_refused_and_never_a_500(service: Service, kind: str) -> None:
    with Wire(service.port) as wire:
        assert status(wire.send(NO_HTTP[kind]).answer("GET")) in (400, 417, 501)


@pytest.mark.parametrize("kind", IGNORED)
def test_what_only_another_server_would_heed_is_ignored(service: Service, kind: str) -> None:
    with Wire(service.port) as wire:
        assert status(wire.send(IGNORED[kind]).answer("GET")) in (200, 404)


def test_what_follows_a_refused_request_is_no_request(service: Service) -> None:
    """Otherwise a proxy and the service could disagree on where one ends and the next begins."""
    smuggled = posting(body(order_id="smuggled"))
    too_large = [HEAD + b"Content-Length: %d\r\n\r\n" % length for length in (600_000, 10**25)]
    for first in (*NO_HTTP.values(), *too_large):
        with Wire(service.port) as wire:
            wire.send(first + smuggled).all()
    assert "smuggled" not in order_ids(service)


def test_garbage_of_every_length_is_refused_or_left_alone(service: Service, report: Callable[[str], None]) -> None:
    """Valid requests with bytes changed, left out and put in: an answer below 500, or the end."""
    import random

    dice = random.Random(7)
    whole = posting(body())
    seen: Counter[int] = Counter()

    def spoil(request: bytes) -> bytes:
        spoilt = bytearray(request)
        for _ in range(dice.randint(1, 8)):
            at = dice.randrange(len(spoilt))
            match dice.randrange(3):
                case 0:
                    spoilt[at] = dice.randrange(256)
                case 1:
                    del spoilt[at : at + dice.randint(1, 5)]
                case 2:
                    spoilt[at:at] = dice.choice([b"\r\n", b"\r\n\r\n", b"\0", b" ", b":", b"\xff", b"\n", b"0\r\n\r\n"])
        return bytes(spoilt)

    def ask(request: bytes) -> int:
        with Wire(service.port) as wire:
            wire.send(request)
            wire.socket.shutdown(socket.SHUT_WR)
            found = re.match(rb"HTTP/1\.1 (\d{3})", wire.all())
            return int(found[1]) if found else 0

    with ThreadPoolExecutor(16) as threads:
        seen.update(threads.map(ask, [spoil(whole) for _ in range(1000)]))
    report(f"1000 spoilt requests were answered {dict(sorted(seen.items()))}")
    assert not [code for code in seen if code >= 500]


# Who is local, and what is secret


@pytest.mark.parametrize(
    "field",
    ["X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 proxy",
    "X-Forwarded-Host: localhost",
     "X-Forwarded-Proto: https", "X-Client-IP: 127.0.0.1", "X-Original-Forwarded-For: ::1",
     "CF-Connecting-IP: 127.0.0.1",
     "True-Client-IP: ::1", "X-Cluster-Client-IP: ::1", "X-Envoy-External-Address: ::1"],
)  # fmt: skip
def test_what_a_proxy_hands_on_is_not_local_whatever_it_says(service: Service, field: str) -> None:
    with Wire(service.port) as wire:
        wire.send(b"GET /operator/deliveries HTTP/1.1\r\nHost: localhost\r\n")
        assert status(wire.send(f"{field}\r\n\r\n".encode()).answer("GET")) == 403
        assert status(wire.send(b"GET /operator/deliveries HTTP/1.1\r\nHost: localhost\r\n\r\n").answer("GET")) == 200


def test_a_page_of_another_site_can_not_place_an_order(service: Service) -> None:
    """What a browser sends without asking is refused; what it asks for first is not allowed."""
    content = body(order_id="foreign")
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):
        with Wire(service.port) as wire:
            fields = posting(content, b"Origin: https://evil.example", b"Sec-Fetch-Site: cross-site")
            wire.send(fields.replace(b"application/json", kind))
            assert status(wire.answer()) == 415
    for path in (b"/api/create_order", b"/operator/deliveries/retry", b"/operator/deliveries/discard"):
        with Wire(service.port) as wire:
            wire.send(b"OPTIONS " + path + b" HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n")
            wire.send(b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n")
            answer = wire.answer("OPTIONS")
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert "foreign" not in order_ids(service)


SECRETS = {
    "api_token": "t0ken-of-the-api",
    "console_password": "pass-of-the-console",
    "mail_password": "pass-of-the-mail",
}


def test_no_secret_is_logged_stored_or_answered(serve: Serve, folder: Path) -> None:
    """Not when it is right, nor when it is nearly right; in debug mode neither."""
    service = serve(**SECRETS, mail_username="shop", log_level="DEBUG", web_concurrency=1).start(ready="/healthz")
    token, password = SECRETS["api_token"], SECRETS["console_password"]
    basic = b64encode(f"ann:{password}".encode()).decode()
    answers = b""
    for authorization in (f"Bearer {token}", f"Bearer {token}x", f"Basic {basic}", f"Basic {basic[:-2]}", token):
        for line in (
            "GET /api/orders",
            "GET /operator/deliveries",
            "GET /openapi.json",
            "GET /nothing",
            "GET /api/%ff",
            "PUT /api/orders",
        ):
            with Wire(service.port) as wire:
                fields = f"Host: localhost\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n"
                answers += wire.send(f"{line} HTTP/1.1\r\n{fields}".encode()).all()
    with Wire(service.port) as wire:  # a header field that gunicorn itself refuses
        answers += wire.send(f"GET / HTTP/1.1\r\nAuthorization : Bearer {token}\r\n\r\n".encode()).all()
    doctor = service.run("flask", "--app", "wsgi", "doctor")
    broken = service.run("flask", "--app", "wsgi", "doctor", mail_port="none")
    service.stop()

    assert b" 200 OK" in answers
    assert b" 401 " in answers
    texts = {"answers": answers.decode(), "log": service.log, "doctor": doctor.stdout + doctor.stderr}
    texts["error"] = broken.stdout + broken.stderr
    for file in (path for path in folder.rglob("*") if path.is_file()):
        texts[file.name] = file.read_bytes().decode("latin-1")
    for secret in (*SECRETS.values(), basic):
        assert [name for name, text in texts.items() if secret in text] == []


def test_other_users_of_the_machine_can_read_neither_orders_nor_mails(serve: Serve, folder: Path) -> None:
    """Whatever the umask is: it is 0 here."""
    before = os.umask(0)
    try:
        service = serve(web_concurrency=1).start()
    finally:
        os.umask(before)
    service.post(**order(email="ann@example.com"))
    wait_until(lambda: list((folder / "instance" / "mail" / "new").glob("*")), "the mail")

    modes = {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in (folder / "instance").rglob("*")
    }
    assert {"instance/orders.db", "instance/orders.db-wal", "instance/orders.db-wake", "instance/mail/new"} <= set(
        modes
    )
    assert stat.S_IMODE((folder / "instance").stat().st_mode) == 0o700
    readable = {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and "orders.db-wake/" not in name}
    assert readable == {}


def test_ids_name_no_files(serve: Serve, folder: Path) -> None:
    service = serve(web_concurrency=1).start()
    for name in ("..-", ".-", "-rf", "...", "a:b", "C:", "con", "new"):
        assert service.post(**order(order_id=name, user_id=name, email="ann@example.com")).status == 201
    new = folder / "instance" / "mail" / "new"
    wait_until(lambda: len(list(new.glob("*"))) == 8, "eight mails")

    assert all(re.fullmatch(r"\d+\.M\d+R[0-9a-f]+\.[\w.-]+", file.name) for file in new.iterdir())
    assert {path.name for path in folder.iterdir()} == {"instance", service.log_file.name}


# Too many


def test_while_the_database_is_stuck_orders_are_refused_in_time_and_all_else_goes_on(
    serve: Serve, folder: Path, report: Callable[[str], None]
) -> None:
    """64 clients post while somebody else holds the write lock, until 5000 were refused or 5 s are over."""
    service = serve(mail_backend="memory", database_timeout=4).start()
    seconds_for_an_order(service)
    before = memory(service)
    answers: dict[int, list[float]] = {}
    healthy: list[float] = []
    over = threading.Event()

    def timed(client: Client, into: list[float], ask: Callable[[], int]) -> int:
        began = time.monotonic()
        code = ask()
        into.append(time.monotonic() - began)
        return code

    def post() -> None:
        with contextlib.closing(Client(service.port)) as client:
            while not over.is_set():
                began = time.monotonic()
                answer = client.post(**order())
                answers.setdefault(answer.status, []).append(time.monotonic() - began)
                assert answer.status != 503 or answer.headers["Retry-After"] == "2"

    def look() -> None:
        with contextlib.closing(Client(service.port)) as client:
            while not over.wait(0.1):
                assert timed(client, healthy, lambda: client.get("/healthz").status) == 200
                assert timed(client, healthy, lambda: client.get("/api/orders?limit=1").status) == 200

    with ThreadPoolExecutor(65) as threads:
        with contextlib.closing(sqlite3.connect(folder / "instance" / "orders.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            busy = [threads.submit(post) for _ in range(64)] + [threads.submit(look)]
            deadline = time.monotonic() + 5
            wait_until(lambda: time.monotonic() > deadline or len(answers.get(503, [])) > 5000, "the end of the flood")
            assert set(answers) == {503}
            refused = list(answers[503])
            database.execute("ROLLBACK")
        wait_until(lambda: len(answers.get(201, [])) > 64, "orders to be taken again")
        over.set()
        for each in busy:
            each.result()

    report(
        f"{len(refused)} refused, {max(refused):.2f} s at worst; others waited {max(healthy):.2f} s at worst; "
        f"memory grew by {memory(service) - before} MiB"
    )
    assert max(refused) < 4 + 1
    assert max(healthy) < 4
    assert memory(service) - before < 40
    assert seconds_for_an_order(service) < PROMPT


def memory(service: Service) -> int:
    """MiB that its workers hold."""
    status_files = [Path(f"/proc/{pid}/status").read_text() for pid in service.workers()]
    return sum(int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for text in status_files) // 1024  # type: ignore[index]
