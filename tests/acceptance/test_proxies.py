"""The service behind the proxies of deploy/: slow clients are theirs, and so are TLS and a prefix."""

import http.client
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.proxy import PROXIES, Proxy, is_installed
from tests.support.service import Service
from tests.support.wire import SLOW, SlowClients, body, posting

PROMPT_SECONDS = 1.0
TRUST = {"trusted_hosts": "orders.example", "trusted_proxies": 1, "trusted_proxy_headers": "for,proto,host,prefix"}
SLOW_CLIENTS = 200

Start = Callable[..., AbstractContextManager[Proxy]]


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    if not is_installed(request.param):
        pytest.skip(f"there is no {request.param}")
    start: Start = PROXIES[request.param]
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        service = Service(Path(folder), mail_backend="memory", poll_seconds=60, **TRUST)
        try:
            service.start()
            with start(Path(folder), service.port) as started:
                yield started
            service.stop()
        finally:
            service.close()
    assert "Traceback" not in service.log, service.log


def seconds_for_an_order(proxy: Proxy) -> float:
    began = time.monotonic()
    with proxy.wire() as wire:
        answer = wire.send(posting(body())).answer()
    assert answer.status == 201
    return time.monotonic() - began


def test_an_order_is_answered_in_under_a_second_beside_200_slow_clients(
    proxy: Proxy, report: Callable[[str], None]
) -> None:
    with SlowClients(proxy.port, SLOW_CLIENTS, proxy.tls):
        worst = max(seconds_for_an_order(proxy) for _ in range(20))
    report(f"{worst:.3f} s at worst beside {SLOW_CLIENTS} slow clients of {len(SLOW)} kinds")
    assert worst < PROMPT_SECONDS


def test_a_body_that_is_too_large_is_refused(proxy: Proxy) -> None:
    with proxy.wire() as wire:
        assert wire.send(posting(body().ljust(64 * 1024))).answer().status == 201
    with proxy.wire() as wire:
        assert wire.send(posting(body().ljust(64 * 1024 + 1))).answer().status == 413


def test_a_client_of_the_proxy_is_not_local(proxy: Proxy) -> None:
    """Whatever it says of itself."""
    for field in (b"", b"X-Forwarded-For: 127.0.0.1\r\n"):
        with proxy.wire() as wire:
            wire.send(b"GET /operator/deliveries HTTP/1.1\r\nHost: orders.example\r\n" + field + b"\r\n")
            assert wire.answer("GET").status == 403


FORGED = (
    b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil.example\r\n"
    b"X-Forwarded-Port: 666\r\nX-Forwarded-Prefix: /evil\r\nForwarded: for=127.0.0.1;host=evil.example\r\n"
)


@pytest.fixture(scope="module", params=PROXIES)
def prefixed(request: pytest.FixtureRequest) -> Iterator[tuple[Service, Proxy]]:
    """A service and its proxy, which serves it under /shop; every header that there is is trusted."""
    if not is_installed(request.param):
        pytest.skip(f"there is no {request.param}")
    start: Start = PROXIES[request.param]
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        service = Service(
            Path(folder),
            "gunicorn",
            "--access-logfile=-",
            "wsgi:app",
            mail_backend="memory",
            **TRUST,
        )
        try:
            service.start()
            with start(Path(folder), service.port, prefix="/shop") as started:
                yield service, started
            service.stop()
        finally:
            service.close()


def ask(proxy: Proxy, path: str, fields: bytes = b"") -> http.client.HTTPResponse:
    with proxy.wire() as wire:
        wire.send(f"GET {path} HTTP/1.1\r\nHost: orders.example\r\n".encode() + fields + b"\r\n")
        return wire.answer("GET")


@pytest.mark.parametrize("fields", [b"", FORGED], ids=["honest", "forged"])
def test_under_a_prefix_every_address_is_the_clients(prefixed: tuple[Service, Proxy], fields: bytes) -> None:
    """Whatever the client itself says in the headers that are the proxy's."""
    _, proxy = prefixed
    content = body()
    with proxy.wire() as wire:
        request = posting(content, *fields.split(b"\r\n")[:-1]).replace(b"POST /", b"POST /shop/", 1)
        placed = wire.send(request).answer()
    order_id = json.loads(content)["order_id"]
    assert placed.headers["Location"] == f"/shop/api/orders/{order_id}"
    assert ask(proxy, placed.headers["Location"], fields).status == 200

    with proxy.wire() as wire:
        wire.send(posting(body()).replace(b"POST /", b"POST /shop/", 1)).answer()
    link = ask(proxy, "/shop/api/orders?limit=1", fields).headers["Link"]
    assert link.startswith("</shop/api/orders?")
    assert ask(proxy, link[1:].partition(">")[0], fields).status == 200

    document = json.loads(ask(proxy, "/shop/openapi.json", fields).content)  # type: ignore[attr-defined]
    assert document["servers"] == [{"url": "https://orders.example/shop"}]


@pytest.mark.parametrize("fields", [b"", FORGED], ids=["honest", "forged"])
def test_without_a_prefix_a_client_can_not_choose_one(proxy: Proxy, fields: bytes) -> None:
    document = json.loads(ask(proxy, "/openapi.json", fields).content)  # type: ignore[attr-defined]
    assert document["servers"] == [{"url": "https://orders.example"}]


def test_the_log_has_the_clients_address(prefixed: tuple[Service, Proxy]) -> None:
    service, proxy = prefixed
    with proxy.wire(source="127.0.0.77") as wire:
        request = b"GET /shop/api/orders?user_id=logged HTTP/1.1\r\nHost: orders.example\r\n" + FORGED + b"\r\n"
        assert wire.send(request).answer("GET").status == 200
    service.wait_for_log("GET /api/orders?user_id=logged")
    (line,) = [line for line in service.log.splitlines() if "user_id=logged" in line]
    assert "127.0.0.77 " in line


@pytest.mark.parametrize("fields", [b"", FORGED], ids=["honest", "forged"])
def test_a_client_of_a_trusted_proxy_is_not_local(prefixed: tuple[Service, Proxy], fields: bytes) -> None:
    service, proxy = prefixed
    assert ask(proxy, "/shop/operator/deliveries", fields).status == 403
    assert service.get("/operator/deliveries").status == 200


def test_health_is_asked_for_at_the_service_itself_without_the_prefix(prefixed: tuple[Service, Proxy]) -> None:
    service, proxy = prefixed
    assert service.get("/healthz").status == 200
    assert ask(proxy, "/shop/healthz").status == 200
