"""A stop is not held up by the console's visitors: pages that stay open, and downloads that nobody reads."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.acceptance.conftest import Serve
from tests.support.service import Client, Service
from tests.support.wire import Wire

pytestmark = pytest.mark.inprocess("of HTTP alone")

ORDERS = 100_000
"""More than the buffers between the service and a client hold."""

MANY_ORDERS = """
INSERT INTO orders (order_id, user_id, total_price, status, notification, created_at, event_id)
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
SELECT 'o' || n, '42', '19.99', 'confirmed', 'sent', '2026-11-23T08:00:00.000000Z', printf('%036d', n) FROM numbers
"""

STOP_SECONDS = 15
"""Half of what gunicorn waits for at a stop before it kills. A part of a download has five seconds to leave."""


@pytest.fixture
def service(serve: Serve) -> Service:
    made = serve(mail_backend="memory").start()
    with contextlib.closing(sqlite3.connect(Path(str(made.settings["instance_path"])) / "orders.db")) as database:
        database.execute(MANY_ORDERS, (ORDERS,))
        database.commit()
    return made


@pytest.mark.parametrize("path", ["/orders.csv", "/orders.json"])
def test_a_download_that_nobody_reads_does_not_hold_up_a_stop(service: Service, path: str) -> None:
    """Its client has had the beginning, takes nothing more, and does not go away."""
    with Wire(service.port, window=4096) as stuck:
        stuck.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b"200 OK" in stuck.receive_until(b"\r\n\r\n")
        assert service.stop() < STOP_SECONDS
        assert not stuck.all().endswith(b"0\r\n\r\n"), "all of it was sent: there was nothing to be stuck in"


def test_a_page_that_nobody_reads_does_not_hold_up_a_stop(service: Service) -> None:
    """It is sent as a whole, and larger than the buffers of its connection."""
    with Wire(service.port, window=1024) as stuck:
        asked = b"GET /orders?limit=200 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        stuck.send(asked)
        assert b"200 OK" in stuck.receive_until(b"\r\n\r\n")
        stuck.send(asked * 40)  # one after the other: the connection stays
        assert service.stop() < STOP_SECONDS


def test_a_page_that_is_left_open_does_not_hold_up_a_stop(service: Service) -> None:
    """Its connection stays open between two polls."""
    with contextlib.ExitStack() as open_pages:
        for _ in range(20):
            wire = open_pages.enter_context(Wire(service.port))
            wire.send(b"GET /flow/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Live: 1\r\n\r\n")
            wire.receive_until(b"</section>")
        assert service.stop() < STOP_SECONDS / 3
    with pytest.raises(ConnectionRefusedError):
        Client(service.port).get("/healthz")
