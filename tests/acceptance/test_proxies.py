"""The service behind the proxies of deploy/: slow clients are theirs, and so is TLS."""

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
SLOW_CLIENTS = 200

Start = Callable[[Path, int], AbstractContextManager[Proxy]]


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    if not is_installed(request.param):
        pytest.skip(f"there is no {request.param}")
    start: Start = PROXIES[request.param]
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        service = Service(Path(folder), mail_backend="memory", poll_seconds=60)
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
